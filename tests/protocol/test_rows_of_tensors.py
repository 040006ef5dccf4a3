"""Tensors that are no rows of features: what is counted of them, and golden vectors of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_protocol import golden, rows
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.sketch import Feature

OUTPUTS = [Tensor("p", "float32", [None, 2])]
PICTURE = Signature("score", [Tensor("image", "uint8", [None, 2, 2])], OUTPUTS, "p")
MIXED = Signature(
    "score",
    [
        Tensor("age", "float32", [None, 1], ["age"]),
        Tensor("town", "string", [None, 1], ["town"]),
        Tensor("image", "int16", [None, 2]),
    ],
    OUTPUTS,
    "p",
)
STREAM = Signature(
    "score",
    [Tensor("sound", "float32", [1, 3]), Tensor("state", "float32", [2, 1, 2]),
     Tensor("rate", "int64", [])],
    OUTPUTS,
    "p",
)  # fmt: skip
FEATURES = [
    Feature("age", edges=[0.0, 1.0]),
    Feature("town", "categorical", vocabulary=["Bern", "Ulm"]),
    *(Feature(f"image.{word}") for word in ("mean", "std", "min", "max")),
]


def vectors(**changes: object) -> GoldenVectors:
    values: dict[str, object] = {
        "columns": [],
        "rows": 2,
        "numeric": b"",
        "scores": np.zeros((2, 2), "<f4").tobytes(),
        "width": 2,
        "atol": 0.0,
        "tensors": {"image": bytes(range(8))},
    }
    return GoldenVectors(**{**values, **changes})  # type: ignore[arg-type]  # by name


def test_of_an_input_without_columns_its_summaries_are_counted() -> None:
    pictures = np.array([[[0, 2], [4, 6]], [[9, 9], [9, 9]]], np.uint8)
    counted = rows.count(PICTURE, [], {"image": pictures})
    assert counted.tolist() == [[3.0, np.sqrt(5.0), 0.0, 6.0], [9.0, 0.0, 9.0, 9.0]]
    assert counted.shape[1] == len(PICTURE.features)


def test_columns_text_and_pictures_are_counted_side_by_side() -> None:
    counted = rows.count(
        MIXED,
        FEATURES,
        {
            "image": np.array([[1, 3], [5, 5], [7, 7]], np.int16),
            "town": np.array([["Ulm"], ["Rome"], ["nan"]], object),
            "age": np.array([[30], [40], [np.nan]], np.float32),
        },
    )
    np.testing.assert_array_equal(
        counted,
        [[30, 1, 2, 1, 1, 3], [40, -1, 5, 0, 5, 5], [np.nan, np.nan, 7, 0, 7, 7]],
    )


def test_rows_are_counted_alike_as_rows_and_as_tensors() -> None:
    table = {"age": [1.0, 2.0], "town": ["Bern", None]}
    signature = Signature("score", MIXED.inputs[:2], OUTPUTS, "p")
    tensors = rows.bind(signature, table)
    np.testing.assert_array_equal(
        rows.count(signature, FEATURES[:2], tensors), rows.numbers(FEATURES[:2], table)
    )


def test_a_model_without_batches_has_one_row() -> None:
    given = {
        "sound": np.array([[1, 2, 3]], np.float32),
        "state": np.zeros((2, 1, 2), np.float32),
        "rate": np.array(16000),
    }
    assert rows.tensor_rows(STREAM, given) == 1
    counted = rows.count(STREAM, [], given)
    assert counted.shape == (1, 12)
    assert counted[0, 8:].tolist() == [16000.0, 0.0, 16000.0, 16000.0]


@pytest.mark.parametrize("kind", ["bool", "int8", "float16"])
def test_any_kind_of_number_has_summaries(kind: str) -> None:
    tensor = Tensor("x", kind, [None, 2])  # type: ignore[arg-type]  # of the list
    found = rows.summaries(tensor, np.array([[0, 1]], kind))
    assert found.tolist() == [[0.5, 0.5, 0.0, 1.0]]


def test_text_and_empty_rows_have_no_summaries() -> None:
    assert np.isnan(rows.summaries(Tensor("t", "string", [None]), np.array(["a"], object))).all()
    empty = rows.summaries(Tensor("x", "float32", [None, 0]), np.zeros((3, 0), np.float32))
    assert empty.shape == (3, 4)
    assert np.isnan(empty).all()


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), max_size=5))
def test_summaries_are_within_the_row(values: list[list[float]]) -> None:
    given_ = np.array(values, np.float64).reshape(-1, 4)
    mean, std, least, most = rows.summaries(Tensor("x", "float64", [None, 4]), given_).T
    slack = 1e-9 * (1 + np.abs(given_).max(initial=0))
    assert (least <= mean + slack).all()
    assert (mean <= most + slack).all()
    assert (std >= 0).all()
    assert (std <= most - least + slack).all()


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"image": np.zeros((2, 2))}, r"the inputs \['age', 'town'\] are missing"),
        (
            {"image": np.zeros((2, 2)), "age": np.zeros((3, 1)), "town": np.zeros((2, 1))},
            "do not hold the same rows",
        ),
        (
            {"image": np.array(1), "age": np.array(1), "town": np.array(1)},
            "do not hold the same rows",
        ),
        (
            {"image": np.zeros((1, 2)), "age": np.zeros((1, 2)), "town": np.zeros((1, 1))},
            "expected 1 rows of 1 columns",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(given_: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(MalformedError, match=text):
        rows.count(MIXED, FEATURES, given_)


def test_rows_alone_do_not_fill_a_picture() -> None:
    with pytest.raises(MalformedError, match=r"inputs \['image'\] are not made of columns"):
        rows.bind(PICTURE, np.zeros((1, 4)))


def test_a_row_fills_the_inputs_of_a_model_without_batches() -> None:
    signature = Signature("score", [Tensor("x", "float32", [2], ["a", "b"])], OUTPUTS, "p")
    assert rows.bind(signature, np.array([[1.0, 2.0]]))["x"].tolist() == [1.0, 2.0]
    with pytest.raises(MalformedError, match="2 rows: the model takes one row a call"):
        rows.bind(signature, np.zeros((2, 2)))


def test_golden_tensors_come_back_in_the_form_of_the_input() -> None:
    read = golden.decode(golden.encode(vectors()))
    tensors = golden.inputs_of(PICTURE, read)
    assert tensors["image"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert tensors["image"].dtype == np.uint8
    assert tensors["image"].flags.writeable  # runtimes may want that


def test_golden_columns_and_tensors_stand_side_by_side() -> None:
    made = vectors(
        columns=["age", "town"],
        numeric=np.array([[30, np.nan], [40, np.nan]]).tobytes(),
        text={"town": ["Bern", "Ulm"]},
        tensors={"image": np.array([[1, -2], [3, -4]], "<i2").tobytes()},
    )
    tensors = golden.inputs_of(MIXED, made)
    assert tensors["town"].tolist() == [["Bern"], ["Ulm"]]
    assert tensors["age"].tolist() == [[30.0], [40.0]]
    assert tensors["image"].tolist() == [[1, -2], [3, -4]]


STREAM_TENSORS = {
    "sound": np.ones((1, 3), "<f4").tobytes(),
    "state": np.zeros((2, 1, 2), "<f4").tobytes(),
    "rate": np.array(16000, "<i8").tobytes(),
}


def test_golden_tensors_of_a_model_without_batches_are_one_row() -> None:
    made = vectors(rows=1, scores=bytes(8), tensors=STREAM_TENSORS)
    tensors = golden.inputs_of(STREAM, made)
    assert {name: value.shape for name, value in tensors.items()} == {
        "sound": (1, 3),
        "state": (2, 1, 2),
        "rate": (),
    }
    with pytest.raises(MalformedError, match="2 rows: the model takes one a call"):
        golden.inputs_of(STREAM, vectors(tensors=STREAM_TENSORS))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tensors": {}}, "have the columns"),
        ({"tensors": {"image": bytes(8), "more": b""}}, "have the columns"),
        ({"columns": ["a"], "numeric": bytes(16)}, "have the columns"),
        ({"tensors": {"image": bytes(7)}}, "7 bytes of the input 'image'; expected 8"),
        ({"tensors": {"image": bytes(9)}}, "9 bytes of the input 'image'; expected 8"),
    ],
)
def test_golden_vectors_for_another_signature_are_refused(
    changes: dict[str, object], text: str
) -> None:
    with pytest.raises(MalformedError, match=text):
        golden.inputs_of(PICTURE, vectors(**changes))


def test_golden_vectors_give_text_by_columns_only() -> None:
    signature = Signature("score", [Tensor("t", "string", [None])], OUTPUTS, "p")
    with pytest.raises(MalformedError, match="name its columns"):
        golden.inputs_of(signature, vectors(tensors={"t": b""}))
