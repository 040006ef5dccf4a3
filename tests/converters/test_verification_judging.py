"""What refuses a variant, exactly at each limit, and what its golden vectors hold."""

from typing import Any

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from edgefleet_converters.conversion import Limits
from edgefleet_converters.samples import Samples
from edgefleet_converters.tables import Table
from edgefleet_converters.verification import goldens, judging
from edgefleet_converters.verification.arithmetic import Arithmetic
from edgefleet_converters.verification.judging import Judgement
from edgefleet_converters.verification.trial import Latency, Trial
from edgefleet_converters.verification.truth import Truth
from edgefleet_protocol import golden
from edgefleet_protocol.manifest import Signature, Tensor

ROWS = 100
LATENCY = Latency(12.0, 14.0, 20.0, 500)


def probabilities(right: int) -> NDArray[np.float64]:
    """Return two-class scores of which the first `right` choose class 0."""
    scores = np.tile([0.9, 0.1], (ROWS, 1))
    scores[right:] = [0.1, 0.9]
    return scores


def trial(scores: NDArray[np.float64], arithmetic: Arithmetic = "float32") -> Trial:
    return Trial(scores, scores[:8].copy(), LATENCY, 1000, 5000, arithmetic)


def judged(exact: bool, scores: NDArray[np.float64], truth: Truth, **limits: Any) -> Judgement:
    return judging.judge(trial(scores), truth, Limits(**limits), exact=exact)


def reasons(exact: bool, scores: NDArray[np.float64], truth: Truth, **limits: Any) -> list[str]:
    return judged(exact, scores, truth, **limits).reasons


LABELLED = Truth("classification", probabilities(ROWS), np.zeros(ROWS))
UNLABELLED = structs.replace(LABELLED, labels=None)


def test_figures_of_an_equal_variant() -> None:
    found = judged(True, probabilities(ROWS), LABELLED)
    measured = found.measured
    assert found.reasons == []
    assert (measured.parity_max, measured.agreement, measured.score) == (0.0, 1.0, 1.0)
    assert (measured.score_rows, measured.latency_us) == (ROWS, 12.0)
    assert found.evidence is not None
    unlabelled = judged(True, probabilities(ROWS), UNLABELLED).measured
    assert (unlabelled.score, unlabelled.score_rows) == (None, 0)


@pytest.mark.parametrize(("gap", "accepted"), [(0.00099, True), (0.00101, False)])
def test_exact_recipes_are_held_to_parity(gap: float, accepted: bool) -> None:
    scores = probabilities(ROWS)
    scores[50] += [-gap, gap]
    found = reasons(True, scores, LABELLED)
    assert (found == []) is accepted
    assert accepted or "a score is 0.00101 off the original's; at most 0.001" in found[0]
    assert reasons(False, scores, LABELLED) == []


@pytest.mark.parametrize(("wrong", "accepted"), [(2, True), (3, False)])
def test_other_recipes_are_held_to_their_score(wrong: int, accepted: bool) -> None:
    found = reasons(False, probabilities(ROWS - wrong), LABELLED)
    assert (found == []) is accepted
    text = "accuracy 0.9700 on 100 held-out rows; the original has 1.0000 and may lose 0.02"
    assert accepted or found == [text]


@pytest.mark.parametrize(("wrong", "accepted"), [(5, True), (6, False)])
def test_without_labels_other_recipes_must_answer_like_the_original(
    wrong: int, accepted: bool
) -> None:
    found = reasons(False, probabilities(ROWS - wrong), UNLABELLED)
    assert (found == []) is accepted
    assert accepted or "94.00% of the rows are answered like by the original" in found[0]


def test_a_tie_counts_as_the_same_answer() -> None:
    original = np.tile([0.5, 0.5], (ROWS, 1))
    scores = original.copy()
    scores[:, 1] += 1e-7
    assert reasons(True, scores, Truth("classification", original, None)) == []


def test_values_are_compared_on_their_own_scale() -> None:
    values = np.linspace(0, 3000, ROWS).reshape(-1, 1)
    truth = Truth("regression", values, values[:, 0])
    near, far = values.copy(), values.copy()
    near[7] += 0.0009 * values.std()
    far[7] += 0.0011 * values.std()
    assert reasons(True, near, truth) == []
    assert len(reasons(True, far, truth)) == 2  # the gap, and one row of a hundred
    unlabelled = structs.replace(truth, labels=None)
    noisy = values + 0.2 * values.std() * np.where(np.arange(ROWS) % 2, 1, -1)[:, None]
    assert reasons(False, far, unlabelled) == []
    assert "R² against the original is 0.96" in reasons(False, noisy, unlabelled)[0]


def test_scores_that_are_not_finite_refuse() -> None:
    scores = probabilities(ROWS)
    scores[3, 1] = np.nan
    found = judged(False, scores, LABELLED)
    assert (found.reasons, found.evidence) == (["1 scores are not finite"], None)


def test_scores_of_another_shape_refuse() -> None:
    found = reasons(True, probabilities(ROWS)[:, :1], LABELLED)
    assert found == ["gives scores of the shape (100, 1); the original (100, 2)"]


@pytest.mark.parametrize(
    ("arithmetic", "gap", "accepted"),
    [
        ("float32", 0.00009, True),
        ("float32", 0.00011, False),
        ("float16", 0.0124, True),
        ("float16", 0.0126, False),
        ("int16", 0.0049, True),
        ("int16", 0.0051, False),
        ("int8", 0.049, True),
        ("int8", 0.051, False),
    ],
)
def test_a_row_alone_must_score_as_in_a_batch(
    arithmetic: Arithmetic, gap: float, accepted: bool
) -> None:
    scores = probabilities(ROWS)
    alone = structs.replace(trial(scores, arithmetic), single=scores[:8] + gap)
    found = judging.judge(alone, LABELLED, Limits(), exact=False).reasons
    assert (found == []) is accepted
    assert accepted or found == [f"a row alone scores up to {gap:.3g} differently than in a batch"]


@pytest.mark.parametrize(("limit", "accepted"), [(5000, True), (4999, False), (0, True)])
def test_memory_over_its_limit_refuses(limit: int, accepted: bool) -> None:
    found = reasons(True, probabilities(ROWS), LABELLED, peak_memory_bytes=limit)
    assert (found == []) is accepted
    assert accepted or found == ["takes 5000 bytes of memory; at most 4999 are allowed"]


def test_reconstruction_is_judged_by_auc_of_groups() -> None:
    inputs = np.zeros((8, 3))
    labels = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    original = np.repeat([0.1, 0.2, 0.5, 0.6], 2)[:, None] * np.ones((8, 3))
    truth = Truth("score", original, labels, "reconstruction-auc", groups, inputs)
    worse = original.copy()
    worse[2:4] = 0.55  # group 1 now lies above group 2
    assert reasons(False, original, truth) == []
    assert reasons(False, worse, truth) == [
        "AUC 0.7500 on 4 groups of held-out rows; the original has 1.0000 and may lose 0.02"
    ]


def tabular(names: list[str], task: Any = "classification") -> Signature:
    return Signature(
        task,
        [Tensor(name, "float32", [None, 1], [name]) for name in names],
        [Tensor("p", "float32", [None, 2])],
        "p",
        classes=["no", "yes"] if task == "classification" else [],
    )


def test_golden_vectors_cover_the_rows_and_fit_the_arithmetic() -> None:
    text = np.array(["x", None] * 50, object)
    table = Table("t", {"unused": np.zeros(ROWS), "b": text, "a": np.arange(ROWS, dtype=float)})
    samples, scores = Samples("t", table, {}), probabilities(60)
    signature = tabular(["a", "b"])
    exact = goldens.vectors_of(signature, samples, scores, "float32")
    assert golden.decode(golden.encode(exact)) == exact
    assert (exact.rows, exact.columns, exact.atol) == (32, ["a", "b"], 1e-4)
    given = exact.inputs()
    assert isinstance(given, dict)
    assert np.asarray(given["a"])[[0, -1]].tolist() == [0.0, 99.0]
    assert set(given["b"]) == {"x", ""}
    assert golden.faults(exact, exact.expected()) == []
    assert golden.faults(exact, exact.expected() + 2e-4) != []
    rounded = goldens.vectors_of(signature, samples, scores, "int8")
    assert rounded.atol == 0.05
    flipped = rounded.expected().copy()
    flipped[:2] = flipped[:2, ::-1]
    assert any("expected class" in fault for fault in golden.faults(rounded, flipped))


@pytest.mark.parametrize(
    ("arithmetic", "atol"),
    [("float32", 0.0512), ("float16", 6.4), ("int16", 0.8), ("int8", 8.0)],
)
def test_golden_tolerance_of_values_follows_their_size(arithmetic: Arithmetic, atol: float) -> None:
    """Four of the 256 steps of an int8 output over the range seen, a tenth of that for int16."""
    values = np.array([[0.0], [100.0], [200.0], [512.0]])
    assert goldens.atol(arithmetic, "regression", values) == pytest.approx(atol)


def test_golden_vectors_of_tensors_go_by_the_names_of_the_file() -> None:
    pictures = np.random.default_rng(0).random((5, 4, 4, 1))
    state = np.arange(10.0).reshape(5, 2)
    samples = Samples("s.npz", None, {"picture": pictures, "state": state})
    signature = Signature(
        "regression",
        [Tensor("in:0", "float32", [None, 4, 4, 1]), Tensor("in:1", "int32", [None, 2])],
        [Tensor("y", "float32", [None, 1])],
        "y",
    )
    vectors = golden.decode(
        goldens.encode(signature, samples, np.arange(5.0).reshape(5, 1), "float32")
    )
    assert (vectors.rows, vectors.columns) == (5, [])
    tensors = golden.inputs_of(signature, vectors)
    assert np.array_equal(tensors["in:0"], pictures.astype(np.float32))
    assert np.array_equal(tensors["in:1"], state.astype(np.int32))


def test_golden_vectors_of_large_tensors_are_few() -> None:
    frames = np.zeros((40, 300, 300), np.float32)  # 360 KB each
    signature = Signature(
        "regression",
        [Tensor("X", "float32", [None, 300, 300])],
        [Tensor("y", "float32", [None, 1])],
        "y",
    )
    samples = Samples("s.npz", None, {"X": frames})
    vectors = goldens.vectors_of(signature, samples, np.zeros((40, 1)), "float32")
    assert vectors.rows == 2
    one = Signature("regression", [Tensor("X", "float32", [1, 300, 300])], signature.outputs, "y")
    assert goldens.vectors_of(one, samples, np.zeros((40, 1)), "float32").rows == 1
