"""The device: what `predict` with sketching costs beside the bare runtime on the same rows."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter

from edgefleet_agent.testing import HubDouble, Rig, make_bundle
from edgefleet_agent.trial import Verdict
from tests.bench.metric import Metric, microseconds

MODELS = Path(__file__).parents[1] / "agent" / "models"
ROW = np.array([5.1, 3.5, 1.4, 0.2])


def run() -> list[Metric]:
    """Measure one row on both runtimes."""
    batch = ROW.astype(np.float32).reshape(1, 4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(MODELS / "classifier.onnx"), options)
    (name,) = (item.name for item in session.get_inputs())
    onnx_bare = microseconds(lambda: session.run(None, {name: batch}), calls=500)

    interpreter = Interpreter(str(MODELS / "classifier.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def litert() -> object:
        interpreter.set_tensor(source, batch)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    litert_bare = microseconds(litert, calls=500)
    return [
        Metric(
            "predict one row, ONNX Runtime",
            _predict_us("classifier.onnx", "onnxruntime"),
            "µs",
            "InferenceSession.run",
            onnx_bare,
        ),
        Metric(
            "predict one row, LiteRT",
            _predict_us("classifier.tflite", "litert"),
            "µs",
            "set, invoke, get",
            litert_bare,
        ),
    ]


def _predict_us(model_file: str, runtime: str) -> float:
    """Return the time of `Model.predict` on a device that has the model confirmed."""
    with tempfile.TemporaryDirectory() as folder:
        hub = HubDouble()
        # The trial is not what is measured here; the golden vectors still run in this process.
        rig = Rig(Path(folder), hub, surroundings={"try_candidate": lambda *_: Verdict([])})
        bundle = make_bundle(
            (MODELS / model_file).read_bytes(),
            _classifier_scores,
            runtime=runtime,  # type: ignore[arg-type]  # one of the two literals
        )
        hub.send_all(rig.link, hub.release(bundle, 1))
        rig.settle()
        model = rig.engine.model("colours")
        taken = microseconds(lambda: model.predict(ROW), calls=500)
        rig.close()
        return taken


def _classifier_scores(rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(MODELS / "classifier.onnx"))
    (name,) = (item.name for item in session.get_inputs())
    outputs = [item.name for item in session.get_outputs()]
    scores = session.run([outputs[-1]], {name: rows.astype(np.float32)})[0]
    return np.asarray(scores, np.float32)
