import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import ports
from edgefleet_converters.routes.opened import Hints
from edgefleet_converters.samples import Samples
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Signature, Tensor

A, B = Tensor("a", "float32", [None, 2]), Tensor("b", "float32", [None, 3])


def table(*names: str) -> Samples:
    return Samples("t.csv", Table("t.csv", {name: np.zeros(4) for name in names}), {})


def arrays(**shapes: tuple[int, ...]) -> Samples:
    return Samples("s.npz", None, {name: np.zeros((4, *shape)) for name, shape in shapes.items()})


def test_columns_fill_inputs_in_their_order() -> None:
    first, second = ports.fill("m", [A, B], table("p", "q", "r", "s", "t"))
    assert (first.columns, second.columns) == (["p", "q"], ["r", "s", "t"])


def test_columns_fill_inputs_by_name_where_all_are_named_so() -> None:
    one = [Tensor(name, "float32", [None, 1]) for name in ("x", "y")]
    assert [t.columns for t in ports.fill("m", one, table("y", "x"))] == [["x"], ["y"]]


def test_too_few_columns_and_free_sizes_are_refused_for_a_table() -> None:
    with pytest.raises(BadInputError, match=r"a, b take 5 values a row; t.csv has 2 columns"):
        ports.fill("m", [A, B], table("p", "q"))
    with pytest.raises(UnsupportedError, match=r"shape \[None, None\]; expected fixed sizes"):
        ports.fill("m", [Tensor("a", "float32", [None, None])], table("p"))


def test_arrays_fill_inputs_in_order_or_by_name_and_fix_free_sizes() -> None:
    filled = ports.fill("m", [A, Tensor("b", "float32", [None, None, 3])], arrays(x=(2,), y=(7, 3)))
    assert [(t.name, t.shape) for t in filled] == [("a", [None, 2]), ("b", [None, 7, 3])]
    assert [t.name for t in ports.fill("m", [A, B], arrays(b=(3,), a=(2,)))] == ["b", "a"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": (2,)}, "the model has the inputs a, b; s.npz has the arrays x"),
        (
            {"x": (3,), "y": (3,)},
            r"'x' has rows of the shape \[3\]; the input 'a' of m takes \[2\]",
        ),
        ({"x": (2, 1), "y": (3,)}, r"'x' has rows of the shape \[2, 1\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    given: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        ports.fill("m", [A, B], arrays(**given))


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["a"], None, "a"),
        (["a", "b"], None, "b"),
        (["scores", "b"], None, "scores"),
        (["a", "b"], "a", "a"),
    ],
)
def test_the_score_is_the_named_output_or_the_last(
    names: list[str], asked: str | None, expected: str
) -> None:
    outputs = [Tensor(name, "float32", [None, 2]) for name in names]
    assert ports.choose_score("m", outputs, asked) == expected


def test_a_score_that_does_not_exist_or_holds_no_floats_is_refused() -> None:
    with pytest.raises(BadInputError, match="no output 'c'; there are a, b"):
        ports.choose_score("m", [A, B], "c")
    with pytest.raises(UnsupportedError, match="no output holds scores"):
        ports.choose_score("m", [Tensor("n", "int64", [None])], None)


UNIT = np.array([[0.25, 0.75], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        (UNIT, None, "classification"),
        (UNIT * 4 - 1, None, "score"),
        (UNIT * 4 - 1, np.array([0.0, 1.0]), "classification"),
        (UNIT[:, :1], None, "regression"),
        (UNIT[:, :1], np.array([0.0, 1.0]), "regression"),
    ],
)
def test_the_task_follows_from_scores_and_labels(
    scores: NDArray[np.float64], labels: NDArray[np.float64] | None, expected: str
) -> None:
    output = Tensor("y", "float32", [None, scores.shape[1]])
    signature = Signature("score", [Tensor("x", "float32", [None, 9])], [output], "y")
    assert ports.task_of(signature, scores, Hints(labels)) == expected


def test_an_output_of_the_inputs_shape_with_labels_0_and_1_is_a_reconstruction() -> None:
    x, y = Tensor("x", "float32", [None, 4]), Tensor("y", "float32", [None, 4])
    signature = Signature("score", [x], [y], "y")
    scores = np.arange(8.0).reshape(2, 4)
    assert ports.task_of(signature, scores, Hints(np.array([0.0, 1.0]))) == "score"
    assert ports.task_of(signature, scores, Hints(np.array([0.0, 3.0]))) == "classification"


def test_quantized_probabilities_may_be_off_by_half_a_step_each() -> None:
    scores = np.array([[0.5, 0.25, 0.25]]) + 1 / 256
    assert not ports.are_probabilities(scores)
    assert ports.are_probabilities(scores, resolution=1 / 128)
