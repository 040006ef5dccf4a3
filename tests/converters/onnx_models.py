"""Small ONNX models that are right on real samples, made without a training framework."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import registry
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_protocol.manifest import Signature, Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A model, what its steps may learn from, and rows that judge.

    Attributes:
        x: `(n, …)` rows that steps have not seen.
        y: `(n,)` their classes.
    """

    model: Model
    context: Context
    x: Array
    y: Array

    def make(self, name: str, **options: object) -> Model:
        """Carry out one step."""
        found = registry.find(name)
        return found.run(self.model, found.configure(options), self.context)  # type: ignore[no-any-return]  # a step gives a Model

    def accuracy(self, model: Model | None = None) -> float:
        return float((run(model or self.model, self.x).argmax(axis=1) == self.y).mean())


def run(model: Model, x: Array) -> Array:
    """Return the scores of a model of one input."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.data, options, ["CPUExecutionProvider"])
    answer: Array = session.run(
        [model.signature.score_output], {model.signature.inputs[0].name: x}
    )[0]
    return answer


def onnx_model(
    nodes: list[Any], constants: dict[str, Array], shape: list[Any], width: int, opset: int = 17
) -> Model:
    """Return a classifier from `X` to `scores` as an exporter writes it, long names and all."""
    graph = helper.make_graph(
        nodes,
        "made/for/a/test",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        doc_string="documentation",
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="a test")
    inputs = [Tensor("X", "float32", [None, *shape[1:]])]
    outputs = [Tensor("scores", "float32", [None, width])]
    signature = Signature("classification", inputs, outputs, "scores")
    return Model("onnx", proto.SerializeToString(), signature)


@functools.cache
def digits_cnn() -> Subject:
    """Return a CNN for digits: random filters, whose sums a least-squares layer reads."""
    data = load_digits()
    x = (data.images[:, None] / 16).astype(np.float32)
    rng = np.random.default_rng(4)
    learned, judged = np.split(rng.permutation(len(x)), [1200])
    nodes, constants = _features(rng)
    body = onnx_model(
        [*nodes, helper.make_node("Identity", ["flat"], ["scores"])], constants, ["n", 1, 8, 8], 512
    )
    features = run(body, x[learned])
    wide = np.c_[features, np.ones(len(features), np.float32)]
    wanted = np.eye(10, dtype=np.float32)[data.target[learned]] * 12
    solved = np.linalg.solve(wide.T @ wide + 3.0 * np.eye(513), wide.T @ wanted).astype(np.float32)
    constants |= {"dense/kernel": solved[:-1], "dense/bias": solved[-1]}
    nodes += [
        helper.make_node("MatMul", ["flat", "dense/kernel"], ["dense/product"], "dense/MatMul"),
        helper.make_node("Add", ["dense/product", "dense/bias"], ["dense/sum"], "dense/BiasAdd"),
        helper.make_node("Softmax", ["dense/sum"], ["scores"], "softmax", axis=1),
    ]
    model = onnx_model(nodes, constants, ["n", 1, 8, 8], 10)
    scores = run(model, x[learned]).astype(np.float64)
    samples = Samples("digits", None, {"X": x[learned]})
    context = Context("classification", samples, scores, data.target[learned].astype(np.float64), 0)
    return Subject(model, context, x[judged], data.target[judged])


def _features(rng: np.random.Generator) -> tuple[list[Any], dict[str, Array]]:
    """Two convolutions, the first normalised, a depthwise one with a residual, and a pool."""
    spread = np.exp(rng.normal(0, 1, (32, 1, 1, 1))).astype(np.float32)
    constants: dict[str, Array] = {
        "conv/kernel": rng.normal(0, 1, (16, 1, 3, 3)).astype(np.float32),
        "normal/scale": np.ones(16, np.float32),
        "normal/offset": np.zeros(16, np.float32),
        "normal/mean": np.full(16, 0.1, np.float32),
        "normal/variance": np.full(16, 4.0, np.float32),
        "conv_1/kernel": rng.normal(0, 0.15, (32, 16, 3, 3)).astype(np.float32) * spread,
        "conv_1/bias": np.full(32, 0.05, np.float32),
        "depthwise/kernel": rng.normal(0, 0.3, (32, 1, 3, 3)).astype(np.float32),
        "depthwise/bias": np.zeros(32, np.float32),
        "flatten/shape": np.array([-1, 512], np.int64),
    }
    window = {"pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "kernel_shape": [3, 3]}
    make = helper.make_node
    nodes = [
        make("Conv", ["X", "conv/kernel"], ["conv/Conv2D"], "conv/Conv2D", group=1, **window),
        make(
            "BatchNormalization",
            ["conv/Conv2D", *(f"normal/{n}" for n in ("scale", "offset", "mean", "variance"))],
            ["normal/out"],
            "normal",
        ),
        make("Relu", ["normal/out"], ["relu"], "relu"),
        make("MaxPool", ["relu"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["pool", "conv_1/kernel", "conv_1/bias"], ["conv_1"], "conv_1", **window),
        make("Relu", ["conv_1"], ["relu_1"], "relu_1"),
        make(
            "Conv",
            ["relu_1", "depthwise/kernel", "depthwise/bias"],
            ["depthwise"],
            "depthwise",
            group=32,
            **window,
        ),
        make("Add", ["depthwise", "relu_1"], ["residual"], "residual"),
        make("Relu", ["residual"], ["relu_2"], "relu_2"),
        make("Reshape", ["relu_2", "flatten/shape"], ["flat"], "flatten"),
    ]
    return nodes, constants
