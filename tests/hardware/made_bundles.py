"""Bundles for tests: whole, small, and made without a conversion."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from edgefleet_converters import bundles
from edgefleet_converters.bundles import Bundle
from edgefleet_protocol import golden, manifest
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Lineage, Manifest, Measured, Needs, Signature, Tensor

Role = Literal["model", "reference", "golden"]


def doubled_rows(folder: Path, opset: int = 17) -> None:
    """Write a whole bundle of a model that doubles its rows.

    Args:
        folder: is made.
        opset: that the model says it needs.
    """
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    vectors = GoldenVectors(
        ["a", "b"],
        2,
        rows.astype("<f8").tobytes(),
        (2 * rows).astype("<f4").tobytes(),
        2,
        1e-6,
    )
    contents: dict[Role, bytes] = {
        "model": bytes(model.SerializeToString()),
        "reference": b"",
        "golden": golden.encode(vectors),
    }
    described = [manifest.describe_file(role, data) for role, data in contents.items()]
    made = Manifest(
        "doubling",
        "1",
        "onnx-fp32",
        [file for file, _ in described],
        Signature(
            "regression",
            [Tensor("x", "float32", [None, 2], ["a", "b"])],
            [Tensor("y", "float32", [None, 2])],
            "y",
        ),
        Needs("onnxruntime", "1.16"),
        Measured(0.0, 1.0, 1.0),
        Lineage(),
    )
    blobs = {file.transfer.digest: blob for file, blob in described}
    bundles.save(Bundle(made, manifest.encode(made), blobs), folder)
