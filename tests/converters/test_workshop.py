"""The workshop: shared beginnings, filled jumps, and a recipe that fails never takes the others."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgefleet_converters.child import ChildLimits
from edgefleet_converters.errors import ChildCrashedError, UnsupportedError
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe, StepCall, Target
from edgefleet_converters.recipes.workshop import Refused
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import registry
from edgefleet_converters.steps.registry import Context, Format, Model
from edgefleet_protocol.manifest import Signature, Tensor

SIGNATURE = Signature(
    "regression",
    [Tensor("X", "float32", [None, 1], ["a"])],
    [Tensor("y", "float32", [None, 1])],
    "y",
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A context through which child processes find the steps of `workshop_steps`."""
    before = registry.all_steps()
    log = tmp_path_factory.mktemp("workshop") / "log"
    samples = Samples("s", None, {"X": np.zeros((1, 1))})
    with pytest.MonkeyPatch.context() as patch:
        folder = str(Path(__file__).parent)
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", folder)  # of the children, which unpickle the context
        import workshop_steps

        yield workshop_steps.TestContext(
            "regression", samples, np.zeros((1, 1)), None, 0, log=str(log)
        )
    registry._steps.clear()
    registry._steps.update(before)


@pytest.fixture
def log(context: Context) -> Path:
    path = Path(context.log)  # type: ignore[attr-defined]  # of the subclass in workshop_steps
    path.write_text("")
    return path


def model(kind: Format) -> Model:
    return Model(kind, f"{kind}:".encode(), SIGNATURE)


def recipe(name: str, *steps: str, gives: Target = "onnx") -> Recipe:
    """Return a recipe; a step of one letter appends it."""
    calls = [
        StepCall("append", {"letter": step}) if len(step) == 1 else StepCall(step) for step in steps
    ]
    return Recipe(name, "For tests.", gives, calls)


def data(made: Model | Refused) -> str:
    return made.data.decode() if isinstance(made, Model) else made.reason


def test_equal_beginnings_are_carried_out_once(context: Context, log: Path) -> None:
    told: list[tuple[float, str]] = []
    made = workshop.make(
        {"onnx": model("onnx")},
        [recipe("ab", "a", "b"), recipe("abc", "a", "b", "c"), recipe("b", "b"), recipe("none")],
        context,
        lambda fraction, text: told.append((fraction, text)),
    )
    assert {name: data(each) for name, each in made.items()} == {
        "ab": "onnx:ab",
        "abc": "onnx:abc",
        "b": "onnx:b",
        "none": "onnx:",
    }
    assert log.read_text() == "abcb"
    assert [text for _, text in told] == ["ab: append", "ab: append", "abc: append", "b: append"]
    assert [fraction for fraction, _ in told] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    abc = made["abc"]
    assert isinstance(abc, Model)
    assert abc.notes == {"append": "c"}


def test_what_fails_refuses_the_recipes_that_go_through_it(context: Context, log: Path) -> None:
    made = workshop.make(
        {"onnx": model("onnx")},
        [
            recipe("refused", "a", "refuse"),
            recipe("failed", "a", "fail", "b"),
            recipe("failed-too", "a", "fail", "c"),
            recipe("aborted", "a", "abort", "b"),
            recipe("aborted-too", "a", "abort"),
            recipe("bad-note", "misnote"),
            recipe("good", "a", "d"),
        ],
        context,
    )
    assert made["refused"] == Refused("this model has no layers")
    assert made["failed"] == made["failed-too"] == Refused("step fail: KeyError: 'Identity_7'")
    aborted = made["aborted"]
    assert aborted == made["aborted-too"]
    assert isinstance(aborted, Refused)
    assert aborted.crashed
    assert "step abort: making the variants: the process was killed by SIGABRT" in aborted.reason
    assert "step misnote: TypeError" in data(made["bad-note"])
    assert data(made["good"]) == "onnx:ad"
    # The child that died had carried out `a`: the next one took it from the folder.
    assert log.read_text() == "ad"


def test_a_step_that_hangs_is_stopped_and_the_others_go_on(context: Context, log: Path) -> None:
    made = workshop.make(
        {"onnx": model("onnx")},
        [recipe("hangs", "hang"), recipe("good", "a")],
        context,
        limits=ChildLimits(time_s=3.0),
    )
    hung = made["hangs"]
    assert isinstance(hung, Refused)
    assert hung.crashed
    assert "no answer within 3 s, stopped" in hung.reason
    assert data(made["good"]) == "onnx:a"


def test_a_kept_folder_spares_the_steps_and_tries_crashes_again(
    context: Context, log: Path, tmp_path: Path
) -> None:
    recipes = [recipe("ab", "a", "b"), recipe("refused", "refuse"), recipe("aborted", "abort")]
    bases: dict[Format, Model] = {"onnx": model("onnx")}
    first = workshop.make(bases, recipes, context, folder=tmp_path)
    assert log.read_text() == "ab"
    again = workshop.make(bases, [*recipes, recipe("ac", "a", "c")], context, folder=tmp_path)
    assert log.read_text() == "abc"
    assert {name: again[name] for name in first} == first
    told: list[str] = []
    workshop.make(bases, recipes[:2], context, lambda _, text: told.append(text), folder=tmp_path)
    assert told == []  # not even a child is started


def test_a_caller_cancels_by_raising(context: Context) -> None:
    def cancel(fraction: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop.make({"onnx": model("onnx")}, [recipe("a", "a")], context, cancel)


def test_a_crash_before_any_step_is_the_callers(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object, **kwargs: object) -> int:
        raise ChildCrashedError("killed")

    monkeypatch.setattr(workshop.child, "run", crash)
    with pytest.raises(ChildCrashedError, match="killed"):
        workshop.make({"onnx": model("onnx")}, [recipe("a", "a")], context)


@pytest.mark.parametrize(
    ("name", "bases", "base", "steps"),
    [
        ("onnx-fp32", ["onnx"], "onnx", []),
        ("onnx-fp32", ["keras"], "keras", ["keras-to-onnx"]),
        # The base with the fewest steps.
        ("onnx-fp32", ["keras", "onnx"], "onnx", []),
        ("onnx-fp16", ["savedmodel"], "savedmodel", ["savedmodel-to-onnx", "onnx-fp16"]),
        ("onnx-fp32", ["tflite"], "tflite", ["tflite-to-onnx"]),
        ("tflite-int8", ["keras"], "keras", ["tflite-int8"]),
    ],
)
def test_jumps_between_formats_are_filled_with_conversions(
    name: str, bases: list[Format], base: str, steps: list[str]
) -> None:
    made = workshop.plan(recipes_of.builtin()[name], bases)
    assert (made.base, [call.step for call in made.calls]) == (base, steps)


def test_what_no_base_leads_to_is_refused_with_what_would() -> None:
    with pytest.raises(UnsupportedError) as caught:
        workshop.plan(recipes_of.builtin()["tflite-fp32"], ["onnx"])
    text = "is made from keras or savedmodel or tflite; this model comes as onnx"
    assert str(caught.value) == text


def test_plans_begin_alike_only_from_the_same_base_with_the_same_options() -> None:
    call = StepCall("onnx-int8-static", {"rows": 8, "activations": "s8"})
    same = StepCall("onnx-int8-static", {"activations": "s8", "rows": 8})
    other = StepCall("onnx-int8-static", {"activations": "u8", "rows": 8})
    plain = recipe("p")
    first = workshop.Plan(plain, "onnx", [call]).beginnings
    assert workshop.Plan(plain, "onnx", [same]).beginnings == first
    assert workshop.Plan(plain, "onnx", [other]).beginnings != first
    assert workshop.Plan(plain, "tflite", [call]).beginnings != first
