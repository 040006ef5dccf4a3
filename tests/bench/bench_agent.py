"""The device: what `predict` and the sketch cost, and what an agent adds to a bare process.

Times are taken beside the bare runtime on the same model and rows in the same run. Memory and start
are those of processes of their own: the agent on a store that has the model confirmed, with the
real MQTT link (nobody answers it), beside a process that imports the same runtime, NumPy and paho
and loads the same file.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgefleet_agent.inference.serving import Model
from edgefleet_agent.inference.sketching import Recorder
from edgefleet_agent.testing import HubDouble, Rig, make_bundle
from edgefleet_agent.trusting import identity
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol import sketch
from edgefleet_protocol.messages import Slot
from tests.bench.metric import Metric, microseconds

MODELS = Path(__file__).parents[1] / "agent" / "models"
ROW = np.array([5.1, 3.5, 1.4, 0.2])
FILES = {"onnxruntime": "classifier.onnx", "litert": "classifier.tflite"}
LABELS = {"onnxruntime": "ONNX Runtime", "litert": "LiteRT"}
NUMERIC, CATEGORICAL = 16, 2
STARTS = 7
_MIB = 1024 * 1024


def run() -> list[Metric]:
    """Measure one row, one sketched row, memory and start."""
    found = []
    for runtime in FILES:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder)
            found += _predict(runtime, store)
            found += _process(runtime, store)
    return [*found, *_sketch()]


# -- one row ---------------------------------------------------------------------------------------


def _predict(runtime: str, store: Path) -> list[Metric]:
    rig = _device(runtime, store)
    model: Model = rig.engine.model("colours")
    batch = ROW.astype(np.float32).reshape(1, 4)
    bare = _bare_call(runtime)
    predict_us, call_us = _in_turns(lambda: model.predict(ROW), lambda: bare(batch))
    ring = np.empty((256, len(ROW)))
    ring_us = microseconds(lambda: np.copyto(ring[7], ROW), calls=2000)
    rig.close()
    label = LABELS[runtime]
    peer = "InferenceSession.run" if runtime == "onnxruntime" else "set, invoke, get"
    return [
        Metric(f"predict one row, {label}", predict_us, "µs", peer, call_us),
        Metric(
            f"overhead of predict, {label}",
            predict_us - call_us,
            "µs",
            "copy into a ring",
            ring_us,
        ),
    ]


def _in_turns(*calls: Callable[[], object]) -> list[float]:
    """Return the time of each call in µs, measured in turns: what disturbs one disturbs all.

    A round is far shorter than the time slice of a scheduler, so that the median is one of rounds
    that nothing interrupted.
    """
    rounds = [[microseconds(call, calls=25, rounds=1) for call in calls] for _ in range(401)]
    return [median(times) for times in zip(*rounds, strict=True)]


def _bare_call(runtime: str) -> Callable[[np.ndarray], object]:
    path = str(MODELS / FILES[runtime])
    if runtime == "onnxruntime":
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(path, options)
        (name,) = (item.name for item in session.get_inputs())
        return lambda batch: session.run(None, {name: batch})
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def call(batch: np.ndarray) -> object:
        interpreter.set_tensor(source, batch)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return call


def _device(runtime: str, store: Path) -> Rig:
    """Return a device that has the model confirmed."""
    hub = HubDouble()
    # The trial is not what is measured here; the golden vectors still run in this process.
    rig = Rig(store, hub, surroundings={"try_candidate": lambda *_: Verdict([])})
    bundle = make_bundle(
        (MODELS / FILES[runtime]).read_bytes(),
        _classifier_scores,
        runtime=runtime,  # type: ignore[arg-type]  # one of the two literals
    )
    hub.send_all(rig.link, hub.release(bundle, 1))
    rig.settle()
    return rig


def _classifier_scores(rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(MODELS / FILES["onnxruntime"]))
    (name,) = (item.name for item in session.get_inputs())
    outputs = [item.name for item in session.get_outputs()]
    scores = session.run([outputs[-1]], {name: rows.astype(np.float32)})[0]
    return np.asarray(scores, np.float32)


# -- one sketched row ------------------------------------------------------------------------------


def _sketch() -> list[Metric]:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5000, NUMERIC))
    features = [sketch.numeric_feature(f"f{i}", training[:, i]) for i in range(NUMERIC)]
    vocabulary = [f"category {i}" for i in range(8)]
    features += [
        sketch.Feature(f"c{i}", "categorical", vocabulary=vocabulary) for i in range(CATEGORICAL)
    ]
    nothing = np.zeros((0, len(features)))
    profile = sketch.ReferenceProfile(
        0,
        features,
        sketch.pack_counts(sketch.count_rows(features, nothing), features),
        sketch.pack_moments(sketch.moments_of(nothing)),
        ["no", "yes"],
        [0, 0],
        [0] * sketch.CONFIDENCE_BINS,
    )
    recorder = Recorder(
        Slot("m", "1", 1, "x", "0" * 64),
        profile=profile,
        reference="1" * 64,
        classes=profile.classes,
        window_rows=1000,
        recent_bytes=4 * _MIB,
        clock=time.time,
        on_window=lambda _: None,
    )
    codes = rng.integers(0, len(vocabulary), size=(1000, CATEGORICAL))
    whole = np.hstack([rng.normal(size=(1000, NUMERIC)), codes])
    gaps = np.where(rng.random(whole.shape) < 0.01, np.nan, whole)
    ring = np.empty((256, len(features)))

    def record(rows: list[np.ndarray]) -> Callable[[], object]:
        return lambda: [recorder.add(row, 1, 0.75, 12.0) for row in rows]

    def copy() -> None:
        for place, row in enumerate(whole[:256]):
            np.copyto(ring[place], row)

    copy_us = microseconds(copy, calls=4) / 256
    return [
        Metric(
            name,
            microseconds(record(list(rows)), calls=2) / len(rows),
            "µs",
            "copy into a ring",
            copy_us,
        )
        for name, rows in (
            ("sketch a row of 16 floats and 2 categories", whole),
            ("sketch such a row, 1 % missing", gaps),
        )
    ]


# -- processes -------------------------------------------------------------------------------------

_FIGURES = """
def figures():
    import time
    from pathlib import Path
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    print(json.dumps([time.time(), int(resident.split()[1]) * 1024]), flush=True)
"""
_BARE = {
    "onnxruntime": """
import json, sys
import numpy as np, onnxruntime as ort, paho.mqtt.client
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
batch = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
call = lambda: session.run(None, {"x": batch})
call()
""",
    "litert": """
import json, sys
import numpy as np, paho.mqtt.client
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
source = interpreter.get_input_details()[0]["index"]
target = interpreter.get_output_details()[0]["index"]
batch = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
def call():
    interpreter.set_tensor(source, batch)
    interpreter.invoke()
    return interpreter.get_tensor(target)
call()
""",
}
_AGENT = """
import json, sys
from edgefleet_agent.agent import Agent
from edgefleet_agent.config import Config
agent = Agent(Config(store=sys.argv[1], board="generic-x86_64"))
agent.start()
model = agent.model("colours")
model.wait(60)
call = lambda: model.predict([5.1, 3.5, 1.4, 0.2])
call()
"""
_REST = """
figures()
for _ in range(5000):
    call()
figures()
"""


def _process(runtime: str, store: Path) -> list[Metric]:
    _credentials(store)
    label = LABELS[runtime]
    bare = [_start(_BARE[runtime], str(MODELS / FILES[runtime])) for _ in range(STARTS)]
    agent = [_start(_AGENT, str(store)) for _ in range(STARTS)]
    starts = [median(seconds for seconds, _ in runs) * 1e3 for runs in (agent, bare)]
    sizes = [median(size for _, size in runs) / _MIB for runs in (agent, bare)]
    peer = "bare runtime, NumPy, paho"
    return [
        Metric(f"start to first prediction, {label}", starts[0], "ms", peer, starts[1]),
        Metric(f"resident memory, {label}", sizes[0], "MiB", peer, sizes[1]),
        Metric(
            f"memory above the bare process, {label}", sizes[0] - sizes[1], "MiB", peer, sizes[1]
        ),
    ]


def _start(code: str, argument: str) -> tuple[float, float]:
    """Return the seconds to the first answer, and resident bytes after 5000 more."""
    script = _FIGURES + code + _REST
    # As an installed package has it: compiled. The median leaves out the start that compiles.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "pyc")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", script, argument],
        capture_output=True,
        check=True,
        timeout=120,
        env=environment,
    )
    first, last = (msgspec.json.decode(line) for line in done.stdout.splitlines()[-2:])
    return first[0] - began, last[1]


def _credentials(store: Path) -> None:
    """Give the device a certificate, so that its link does all but reach anybody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device-1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    known = identity.load(store)
    hub = identity.Hub(known.hub.device, "127.0.0.1", 1, "https://127.0.0.1:1")
    identity.save(
        store,
        hub,
        key=private,
        certificate=pem,
        ca=pem,
        image_root=known.image_root,
        director_root=known.director_root,
    )
