"""Make the models that the agent's tests use. Run by hand, in the workspace's environment.

    python tests/agent/models/make.py

Every classifier has the weights of `WEIGHTS`: probabilities = softmax(x @ WEIGHTS + BIAS), four
columns in, three classes out, so that a test can compute what is right.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
WEIGHTS = np.array(
    [[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]], np.float32
)
BIAS = np.array([0.1, 0.0, -0.1], np.float32)


def save(
    name: str,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, np.ndarray],
    rows: str | int = "n",
) -> None:
    """Write one ONNX model with the input `x` (n, 4) and the output `probabilities` (n, 3)."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(value, key) for key, value in initializers.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests"
    )
    onnx.checker.check_model(model)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def classifier(sign: float = 1.0) -> list[onnx.NodeProto]:
    """Return the nodes of the classifier."""
    return [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], alpha=sign),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
    ]


def onnx_models() -> None:
    """Write every ONNX model."""
    weights = {"w": WEIGHTS, "b": BIAS}
    save("classifier", classifier(), weights)
    save("inverted", classifier(-1.0), weights)
    # Takes two rows a call, no more and no fewer.
    save("pairs", classifier(), weights, rows=2)
    # Not finite where the first column is above 100: right on golden vectors, wrong in the field.
    save(
        "brittle",
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Softmax", ["z"], ["p"], axis=1),
            helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
            helper.make_node("Sub", ["hundred", "first"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["root"]),
            helper.make_node("Mul", ["root", "none"], ["nothing"]),
            helper.make_node("Add", ["p", "nothing"], ["probabilities"]),
        ],
        {
            **weights,
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "hundred": np.array(100.0, np.float32),
            "none": np.array(0.0, np.float32),
        },
    )
    # A loop whose condition never becomes false.
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Identity", ["v"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, None),
        ],
    )
    save(
        "endless",
        [
            helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body),
            helper.make_node("Gemm", ["y", "w", "b"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        ],
        {**weights, "yes": np.array(True)},
    )
    # Asks for 64 GiB on its first row.
    save(
        "greedy",
        [
            helper.make_node("ConstantOfShape", ["huge"], ["block"]),
            helper.make_node("ReduceSum", ["block"], ["nothing"], keepdims=0),
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Softmax", ["z"], ["p"], axis=1),
            helper.make_node("Add", ["p", "nothing"], ["probabilities"]),
        ],
        {**weights, "huge": np.array([1 << 34], np.int64)},
    )


def tflite_model() -> None:
    """Write the classifier as TFLite."""
    import tensorflow as tf

    module = tf.Module()
    module.w, module.b = tf.constant(WEIGHTS), tf.constant(BIAS)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def score(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(tf.matmul(x, module.w) + module.b)}

    folder = HERE / "saved"
    tf.saved_model.save(module, str(folder), signatures={"serving_default": score})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    (HERE / "classifier.tflite").write_bytes(converter.convert())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    onnx_models()
    tflite_model()
