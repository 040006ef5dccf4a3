"""Champion against challenger, both as compiled variants on ONNX Runtime."""

from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_cloud.datasets import content
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.registry.registration import Registration, store_result
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training import testing
from edgefleet_cloud.training.comparison import compare
from edgefleet_converters.conversion import ConversionResult
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Lineage

X = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])


def linear(weights: NDArray[np.float32]) -> bytes:
    """Return an ONNX model that gives `row @ weights`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["row", "w"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def registered(
    store: Store, version: str, weights: list[list[float]], task: str = "classification"
) -> Registration:
    """Store a bundle whose only variant is a linear model."""
    made = testing.conversion_result()
    model = linear(np.array(weights, np.float32))
    compiled = msgspec.structs.replace(made.compiled[0], model=model)
    assert compiled.signature is not None
    if task == "regression":
        signature = msgspec.structs.replace(compiled.signature, task=task, classes=[])
        compiled = msgspec.structs.replace(compiled, signature=signature)
    result: ConversionResult = msgspec.structs.replace(made, compiled=[compiled])
    return store_result(store, result, model="door", version=version, lineage=Lineage())


def champion(registration: Registration) -> dict[str, Any]:
    manifests = {variant.name: variant.manifest for variant in registration.variants}
    return {"version": registration.version, "manifests": manifests}


def holdout(store: Store, y: list[Any]) -> str:
    cells = np.array(y, object if isinstance(y[0], str) else np.float64)
    table = Table("h", {"length": X[:, 0], "width": X[:, 1], "y": cells})
    return content.prepare(store, table, "y").digest


# Scores (0, length - 1.5·0): says "yes" wherever length is above 0; and its opposite.
SAYS_YES = [[0.0, 1.0], [0.0, 0.0]]
SAYS_NO = [[1.0, 0.0], [0.0, 0.0]]


def test_the_discordant_rows_and_the_paired_error_are_counted(store: Store) -> None:
    old, new = registered(store, "1", SAYS_NO), registered(store, "2", SAYS_YES)
    # Row 0 is a tie, which goes to "no" for both; of the rest, the truth is yes, yes, no.
    digest = holdout(store, ["no", "yes", "yes", "no"])
    found = compare(store, champion(old), new, digest, "y")
    assert (found.champion, found.challenger, found.rows) == ("1", "2", 4)
    assert (found.champion_score, found.challenger_score) == (0.5, 0.75)
    assert (found.champion_only, found.challenger_only) == (1, 2)
    assert found.gain == 0.25
    gains = np.array([0, 1, 1, -1])
    assert found.gain_se == pytest.approx(gains.std(ddof=1) / 2)
    assert (found.champion_variant, found.challenger_variant, found.holdout) == (
        "onnx-fp32", "onnx-fp32", digest,
    )  # fmt: skip


def test_a_model_against_itself_gains_nothing(store: Store) -> None:
    model = registered(store, "1", SAYS_YES)
    found = compare(store, champion(model), model, holdout(store, ["no", "yes", "no", "no"]), "y")
    assert (found.gain, found.gain_se, found.champion_only, found.challenger_only) == (0, 0, 0, 0)


def test_a_label_that_no_model_knows_is_wrong_for_both(store: Store) -> None:
    old, new = registered(store, "1", SAYS_NO), registered(store, "2", SAYS_YES)
    found = compare(store, champion(old), new, holdout(store, ["maybe"] * 4), "y")
    assert (found.champion_score, found.challenger_score) == (0.0, 0.0)


def test_the_gain_of_a_regression_is_its_gain_in_r2(store: Store) -> None:
    old = registered(store, "1", [[0.5], [0.0]], "regression")
    new = registered(store, "2", [[1.0], [0.0]], "regression")
    found = compare(store, champion(old), new, holdout(store, [0.0, 1.0, 2.0, 3.0]), "y")
    # Squared errors of 0.5·x: 0, .25, 1, 2.25; variance of the truth: 1.25.
    assert found.challenger_score == pytest.approx(1.0)
    assert found.champion_score == pytest.approx(1 - (3.5 / 4) / 1.25)
    assert found.gain == pytest.approx(0.7)
    assert (found.champion_only, found.challenger_only) == (0, 0)


def test_models_of_different_tasks_are_not_compared(store: Store) -> None:
    old = registered(store, "1", [[0.5], [0.0]], "regression")
    new = registered(store, "2", SAYS_YES)
    with pytest.raises(InvalidError, match="champion is for regression and the challenger for cla"):
        compare(store, champion(old), new, holdout(store, [0.0, 1.0, 1.0, 0.0]), "y")


def test_variants_of_different_names_are_compared_where_none_is_shared(store: Store) -> None:
    old, new = registered(store, "1", SAYS_NO), registered(store, "2", SAYS_YES)
    held = champion(old)
    held["manifests"] = {"onnx-int8": held["manifests"]["onnx-fp32"]}
    found = compare(store, held, new, holdout(store, ["no", "yes", "yes", "no"]), "y")
    assert (found.champion_variant, found.challenger_variant) == ("onnx-int8", "onnx-fp32")
