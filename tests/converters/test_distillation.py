"""Distillation: small students of a Keras model, a forest and a regression."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from edgefleet_converters import child
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import distillation
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Signature, Task, Tensor
from tests.converters import keras_steps
from tests.converters.keras_steps import Chains, Students

FLOAT = ("keras-to-tflite", {})
OF_KERAS: Chains = {
    "float": [FLOAT],
    "narrow": [("distill-narrow", {"width": 0.5, "epochs": 25}), FLOAT],
    "cnn": [("distill", {"architecture": "cnn", "layers": [12, 24], "epochs": 25}), FLOAT],
    "mlp": [("distill", {"layers": [32], "epochs": 20}), FLOAT],
    "mlp again": [("distill", {"layers": [32], "epochs": 20}), FLOAT],
}
STUDENT: Chains = {"student": [("distill", {"layers": [24], "epochs": 60}), FLOAT]}


def context(
    task: Task, rows: NDArray[np.float64], scores: NDArray[np.float64], labels: Any
) -> tuple[Model, Context]:
    """Return an ONNX base, of which a student reads the signature alone, and its context."""
    columns = [f"c{place}" for place in range(rows.shape[1])]
    width = scores.shape[1]
    signature = Signature(
        task,
        [Tensor("left", "float32", [None, 2], columns[:2])]
        + [Tensor(name, "float32", [None, 1], [name]) for name in columns[2:]],
        [Tensor("label", "int64", [None]), Tensor("probabilities", "float32", [None, width])],
        "probabilities",
        label_output="label",
        classes=[str(place) for place in range(width)] if task == "classification" else [],
    )
    table = Table("rows", {name: rows[:, place] for place, name in enumerate(columns)})
    samples = Samples("rows", table, {})
    return Model("onnx", b"", signature), Context(task, samples, scores, labels, 4)


WINE, WINE_LABELS = datasets.load_wine(return_X_y=True)
FOREST = RandomForestClassifier(50, random_state=0).fit(WINE, WINE_LABELS)
BODIES, PROGRESS = datasets.load_diabetes(return_X_y=True)
REGRESSION = RandomForestRegressor(50, random_state=0, min_samples_leaf=10).fit(BODIES, PROGRESS)


def subjects() -> dict[str, tuple[Model, Context]]:
    values = REGRESSION.predict(BODIES).reshape(-1, 1)
    return {
        "forest": context("classification", WINE, FOREST.predict_proba(WINE), WINE_LABELS),
        "regression": context("regression", 1e3 * BODIES, values, PROGRESS),
        "missing": context(
            "classification", np.where(WINE > 14, np.nan, WINE), FOREST.predict_proba(WINE), None
        ),
    }


@pytest.fixture(scope="module")
def students() -> Students:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs edgefleet-converters[keras]")
    return child.run(
        "distilling", keras_steps.distill, OF_KERAS, STUDENT, subjects(), returns=Students
    )


def run(model: Model, rows: NDArray[np.floating]) -> NDArray[np.float32]:
    interpreter = Interpreter(model_content=model.data, num_threads=1)
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(taken["index"], rows.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], rows.astype(np.float32))
    interpreter.invoke()
    answer: NDArray[np.float32] = interpreter.get_tensor(given["index"])
    return answer


@pytest.mark.parametrize(
    ("name", "share", "accuracy"), [("narrow", 0.5, 0.7), ("cnn", 0.3, 0.8), ("mlp", 0.4, 0.9)]
)
def test_a_student_of_a_network_is_smaller_and_nearly_as_right(
    students: Students, name: str, share: float, accuracy: float
) -> None:
    images, labels = keras_steps.digits()
    held = slice(keras_steps.TRAINING_ROWS, None)
    models = students.keras.models
    assert students.keras.refused == {}
    assert len(models[name].data) < share * len(models["float"].data)
    scores = run(models[name], images[held])
    assert (scores.argmax(axis=1) == labels[held]).mean() > accuracy
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_equal_input_gives_equal_bytes(students: Students) -> None:
    assert students.keras.models["mlp"].data == students.keras.models["mlp again"].data


def test_a_forest_becomes_a_network_of_one_input_without_scaling(students: Students) -> None:
    model = students.others["forest"].models["student"]
    (taken,) = model.signature.inputs
    assert taken.shape == [None, 13]
    assert taken.columns == [f"c{place}" for place in range(13)]
    assert model.signature.classes == ["0", "1", "2"]
    assert model.signature.label_output is None
    # 13 x 24 + 24 and 24 x 3 + 3: the scaling of the inputs is in the first layer.
    assert model.notes == {"distill": {"weights": 411}}
    agreement = run(model, WINE).argmax(axis=1) == FOREST.predict(WINE)
    assert agreement.mean() > 0.97


def test_a_regression_gives_values_in_the_original_unit(students: Students) -> None:
    model = students.others["regression"].models["student"]
    assert model.signature.task == "regression"
    given = run(model, 1e3 * BODIES).reshape(-1)
    expected = REGRESSION.predict(BODIES)
    assert 1 - np.var(given - expected) / np.var(expected) > 0.9


def test_rows_with_missing_values_have_no_student(students: Students) -> None:
    assert students.others["missing"].refused == {
        "student": "UnsupportedError: the rows have missing values; a student takes numbers only"
    }


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([Tensor("site", "string", [None, 1], ["site"])], "takes texts"),
        (
            [Tensor("a", "float32", [None, 4]), Tensor("b", "float32", [None, 4])],
            "has 2 inputs; a student takes one",
        ),
    ],
)
def test_inputs_without_a_number_or_of_several_tensors_have_no_student(
    inputs: list[Tensor], text: str
) -> None:
    signature = Signature("score", inputs, [Tensor("y", "float32", [None, 1])], "y")
    made = Context("score", Samples("rows", None, {}), np.zeros((1, 1)), None, 0)
    with pytest.raises(distillation.UnsupportedError, match=text):
        distillation._signature(signature, made)
