"""The rules of `searching.choice`, each at its edge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.searching.budgets import Budgets
from edgefleet_converters.searching.candidates import Candidate, Distribution
from edgefleet_converters.searching.choice import MARGIN, Choice, choose, chosen_for
from edgefleet_converters.searching.measurements import MeasuredModel, OnBoard
from edgefleet_converters.verification.evidence import Interval
from tests.converters.search_values import around, board, candidate, digest, evidence, float32


def choice_of(*candidates: Candidate, budgets: Budgets | None = None, **view: object) -> Choice:
    names = [one.name for one in candidates]
    return choose(board(*names, **view), candidates, budgets or Budgets())  # type: ignore[arg-type]  # test values


def reasons(choice: Choice, name: str) -> str:
    return "; ".join(choice.losers[name])


def on_board(outcome: str = "right", **p50_us: float) -> dict[str, OnBoard]:
    models = {
        digest(name): MeasuredModel(
            digest(name), name, outcome, Distribution(p50, p50, p50), memory_peak_bytes=77
        )
        for name, p50 in p50_us.items()
    }
    return {key: OnBoard(model, models, "onnxruntime 1.18") for key, model in models.items()}


def test_the_smallest_that_keeps_every_budget_is_chosen_and_the_others_hear_why() -> None:
    choice = choice_of(float32(), candidate("int8", 1000), candidate("int4", 500))
    assert choice.chosen == "int4"
    assert choice.reason == (
        "the smallest of the 3 that keep every budget, 8.0 times smaller than float32"
    )
    assert reasons(choice, "int8") == (
        "keeps every budget, but int4 is preferred: 500 bytes and 10.0 µs, against 1,000 bytes and"
        " 10.0 µs"
    )


@pytest.mark.parametrize(("size", "chosen"), [(1050, "fast"), (1051, "small")])
def test_of_files_within_a_twentieth_the_fastest_is_chosen(size: int, chosen: str) -> None:
    choice = choice_of(
        float32(), candidate("small", 1000, p50=10.0), candidate("fast", size, p50=5.0)
    )
    assert choice.chosen == chosen


def test_the_fastest_is_chosen_where_latency_is_preferred() -> None:
    choice = choice_of(
        float32(),
        candidate("small", 500, p50=10.0),
        candidate("fast", 1000, p50=5.0),
        budgets=Budgets(prefer="latency"),
    )
    assert choice.chosen == "fast"
    assert choice.reason.startswith("the fastest of the 3")


@pytest.mark.parametrize(("high", "chosen"), [(0.01, "int8"), (0.0101, "fp32")])
def test_a_drop_is_within_its_budget_up_to_the_upper_end_of_its_interval(
    high: float, chosen: str
) -> None:
    int8 = candidate("int8", evidence=evidence(Interval(0.001, -0.002, high)))
    choice = choice_of(float32(), int8, budgets=Budgets(max_drop=0.01))
    assert choice.chosen == chosen


def test_an_undecided_drop_is_refused_with_the_rows_that_would_decide() -> None:
    int8 = candidate("int8", evidence=evidence(Interval(0.005, -0.005, 0.015), units=400))
    choice = choice_of(float32(), int8, budgets=Budgets(max_drop=0.01))
    assert choice.chosen == "fp32"
    assert reasons(choice, "int8") == (
        "accuracy drops by 0.0050 (-0.005 to 0.015); the budget is 0.01, which 400 rows do not"
        " prove to be kept; about 1,600 would decide"
    )


@pytest.mark.parametrize(
    ("drop", "chosen"),
    [
        (Interval(0.010, 0.005, 0.015), "int8"),
        (Interval(0.011, 0.005, 0.015), "fp32"),
        (Interval(0.012, 0.0101, 0.015), "fp32"),
    ],
)
def test_not_refuted_lets_an_undecided_drop_pass_if_the_estimate_is_within(
    drop: Interval, chosen: str
) -> None:
    int8 = candidate("int8", evidence=evidence(drop))
    lenient = Budgets(max_drop=0.01, evidence="not-refuted")
    assert choice_of(float32(), int8, budgets=lenient).chosen == chosen


def test_a_drop_that_is_over_says_so() -> None:
    int8 = candidate("int8", evidence=evidence(Interval(0.05, 0.03, 0.07)))
    assert "even the lower end is over it" in reasons(choice_of(float32(), int8), "int8")


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [
        (0.9, 0.99, "int8"),
        (1.0, 1 + MARGIN, "int8"),
        (1.0001, 1.01, "fp32"),
        (0.9, 1.0501, "fp32"),
    ],
)
def test_slower_than_float32_is_decided_on_the_interval(
    low: float, high: float, chosen: str
) -> None:
    int8 = candidate("int8", against={"fp32": Interval((low + high) / 2, low, high)})
    assert choice_of(float32(), int8).chosen == chosen


def test_a_variant_must_not_be_slower_than_the_fastest_float32_of_the_board() -> None:
    other = float32("lite32", against={"fp32": around(0.5)})
    fp32 = float32(against={"lite32": around(2.0)})
    int8 = candidate("int8", against={"fp32": around(0.8), "lite32": around(1.6)})
    choice = choice_of(fp32, other, int8)
    assert choice.chosen == "lite32"
    assert reasons(choice, "int8") == (
        "slower than float32: 1.60 times what lite32 takes here (1.6 to 1.6)"
    )


def test_a_float32_that_does_not_run_on_the_board_is_no_yardstick() -> None:
    other = float32("lite32", against={"fp32": around(0.5)})
    fp32 = float32(against={"lite32": around(2.0)})
    int8 = candidate("int8", against={"fp32": around(0.8), "lite32": around(1.6)})
    misfits = {"fp32": [], "lite32": ["no runtime for tflite"], "int8": []}
    choice = choice_of(fp32, other, int8, misfits=misfits)
    assert choice.chosen == "int8"
    assert reasons(choice, "lite32") == "does not fit the board: no runtime for tflite"


def test_a_variant_that_was_not_timed_beside_float32_is_refused() -> None:
    choice = choice_of(float32(), candidate("int8", against={}))
    assert reasons(choice, "int8") == "was not timed beside fp32"


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        (Budgets(max_bytes=999), "the file is 1,000 bytes, 1 over the budget of 999"),
        (Budgets(max_transfer_bytes=998), "the file as sent is 999 bytes, 1 over"),
        (Budgets(max_memory_bytes=5999), "memory at its peak is 6,000 bytes, 1 over"),
        (Budgets(max_latency_us=9), "takes 10.0 µs a row; the budget is 9 µs"),
    ],
)
def test_a_figure_over_its_budget_is_a_reason(budgets: Budgets, said: str) -> None:
    choice = choice_of(float32(), candidate("int8"), budgets=budgets)
    assert said in reasons(choice, "int8")
    exact = Budgets(1000, 999, 10, 6000)
    assert choice_of(float32(), candidate("int8"), budgets=exact).chosen == "int8"


def test_where_nothing_fits_the_board_hears_what_is_missing() -> None:
    choice = choice_of(float32(), candidate("int8"), budgets=Budgets(max_bytes=900))
    assert choice.chosen is None
    assert choice.reason == (
        "no variant qualifies for Raspberry Pi 5, not even float32; nearest is fp32, which fails"
        " by: the file is 4,000 bytes, 3,100 over the budget of 900"
    )
    assert set(choice.losers) == {"fp32", "int8"}


def test_the_slower_float32_is_better_than_none() -> None:
    slim = float32("slow32", 2000, against={"fp32": around(2.0)})
    choice = choice_of(
        float32(against={"slow32": around(0.5)}), slim, budgets=Budgets(max_bytes=2000)
    )
    assert choice.chosen == "slow32"
    assert choice.reason.startswith("no other variant qualifies")


def test_what_verification_refused_is_never_chosen() -> None:
    choice = choice_of(float32(), candidate("int8", faults=["3 scores are not finite"]))
    assert choice.chosen == "fp32"
    assert reasons(choice, "int8") == "refused by verification: 3 scores are not finite"


def test_of_another_board_known_slow_kernels_are_refused_and_the_rest_is_marked() -> None:
    int8 = candidate("int8", kernels=["int8"])
    small = choice_of(float32(), int8, here=False, features=["neon"])
    assert small.chosen == "fp32"
    assert reasons(small, "int8").startswith(
        "not measured on this board, and int8 arithmetic is known to be slow there"
    )
    able = choice_of(float32(), int8, here=False, features=["neon", "dotprod"])
    assert able.chosen == "int8"
    assert able.notes[0].startswith("not measured on this board")


def test_a_latency_budget_of_a_board_without_figures_is_left_to_the_device() -> None:
    choice = choice_of(float32(), candidate("int8"), here=False, budgets=Budgets(max_latency_us=1))
    assert choice.chosen == "int8"
    assert "stands in the manifest" in choice.notes[1]


def test_figures_of_the_board_count_more_than_those_from_here() -> None:
    int8 = candidate("int8", kernels=["int8"])
    view = {"here": False, "features": ["neon"]}
    faster = choice_of(float32(), int8, measured=on_board(fp32=100.0, int8=50.0), **view)
    assert faster.chosen == "int8"
    assert faster.notes == ["timed on this board with onnxruntime 1.18"]
    slower = choice_of(float32(), int8, measured=on_board(fp32=50.0, int8=100.0), **view)
    assert slower.chosen == "fp32"
    assert reasons(slower, "int8") == (
        "slower than float32: 2.00 times what fp32 takes on the board (1.7 to 2.3)"
    )


def test_a_latency_budget_is_held_against_figures_of_the_board() -> None:
    measured = on_board(fp32=100.0, int8=50.0)
    tight = Budgets(max_latency_us=49)
    choice = choice_of(float32(), candidate("int8"), here=False, measured=measured, budgets=tight)
    assert reasons(choice, "int8") == "takes 50.0 µs a row; the budget is 49 µs"
    assert choice.chosen is None


def test_what_went_wrong_on_the_board_is_refused() -> None:
    measured = on_board("wrong", int8=10.0)
    choice = choice_of(float32(), candidate("int8"), measured=measured)
    assert reasons(choice, "int8") == "run on the board with onnxruntime 1.18, it came out wrong"


def test_nothing_at_all_is_said_to_be_so() -> None:
    assert choice_of().reason == "nothing could be made from the model"


def test_variants_are_listed_with_the_boards_that_get_them() -> None:
    one = choice_of(float32(), candidate("int8"))
    two = choice_of(float32(), candidate("int8"), name="b2")
    none = choice_of(float32(), name="b3", budgets=Budgets(max_bytes=1))
    assert chosen_for([one, two, none]) == {"int8": ["rpi5", "b2"]}


RATIOS = st.builds(
    lambda a, b, c: Interval(*(sorted((a, b, c))[i] for i in (1, 0, 2))),
    *[st.floats(0.2, 3.0)] * 3,
)
DROPS = st.builds(
    lambda a, b, c: Interval(*(sorted((a, b, c))[i] for i in (1, 0, 2))),
    *[st.floats(-0.05, 0.2)] * 3,
)


@given(
    st.lists(st.tuples(st.integers(1, 9000), RATIOS, DROPS), max_size=6),
    st.sampled_from(["proven", "not-refuted"]),
    st.floats(0, 0.1),
)
def test_nothing_slower_or_over_its_drop_is_ever_chosen(
    drawn: list[tuple[int, Interval, Interval]], evidence_wanted: str, max_drop: float
) -> None:
    lossy = [
        candidate(f"v{i}", size, against={"fp32": ratio}, evidence=evidence(drop))
        for i, (size, ratio, drop) in enumerate(drawn)
    ]
    budgets = Budgets(max_drop=max_drop, evidence=evidence_wanted)  # type: ignore[arg-type]  # out of two
    choice = choice_of(float32(), *lossy, budgets=budgets)
    assert choice.chosen is not None
    assert {choice.chosen, *choice.losers} == {"fp32", *(one.name for one in lossy)}
    assert all(choice.losers.values())
    best = next((one for one in lossy if one.name == choice.chosen), None)
    if best is not None and best.evidence is not None:
        assert best.against["fp32"].low <= 1
        assert best.evidence.drop.low <= max_drop + 1e-9
        assert best.evidence.drop.point <= max_drop + 1e-9
