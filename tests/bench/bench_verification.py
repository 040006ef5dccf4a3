"""Verification on the device: both repositories for one update, beside the bare signatures in it.

The image repository is as the hub publishes it: root and targets 2 of 3, a role of an owner and the
hub's own beside it, 200 targets. Each round is a new publication and a new assignment.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import TargetFile

from edgefleet_agent.testing import HubDouble, target_file
from edgefleet_agent.trusting import refresh, tufclient
from edgefleet_agent.trusting.testing import RELEASES, Delegating
from edgefleet_agent.trusting.trust import Accepted, Trust
from edgefleet_protocol.attesting import TimeStatement
from edgefleet_protocol.trust import DirectorTarget, ImageTarget, target_path
from tests.bench.metric import Metric, microseconds

MODELS = 200
ROUNDS = 7
MANIFEST = bytes(3000)
_CHILD = "from edgefleet_agent.trusting import tufclient; tufclient.main()"


def run() -> list[Metric]:
    """Measure verifying one update, in this process and as the agent does it, in a child."""
    one_us = _bare_verification_us()
    with tempfile.TemporaryDirectory() as folder:
        device = _Device(Path(folder) / "here", tufclient.refresh)
        device.accept()
        here, signatures = device.rounds(), device.signatures()
        apart = _Device(Path(folder) / "child", refresh.in_child)
        apart.accept()
        before_ms = _children_ms()
        away = apart.rounds()
        used = _children_ms() - before_ms
        child_mib = _memory_mib(_CHILD, apart.request())
        again_us = microseconds(apart.judge_again, calls=200)
    python_ms = _timed_ms(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
    return [
        Metric(
            "verify both repositories, CPU",
            here.cpu_ms,
            "ms",
            f"its {signatures} Ed25519 verifications alone",
            one_us * signatures / 1000,
        ),
        Metric("the same, durable on disk, wall", here.wall_ms, "ms", "CPU", here.cpu_ms),
        Metric("the same in the agent's child, wall", away.wall_ms, "ms", "bare Python", python_ms),
        Metric("CPU of the child", used / ROUNDS, "ms", "in one process", here.cpu_ms),
        Metric("CPU of the agent meanwhile", away.cpu_ms, "ms", "wall", away.wall_ms),
        Metric("memory of the child", child_mib, "MiB", "bare Python", _memory_mib("")),
        Metric("the same assignment once more", again_us, "µs", "judged anew", here.wall_ms * 1000),
        Metric("verify an attested time", _attested_us(), "µs", "one verification", one_us),
    ]


class _Taken(msgspec.Struct):
    wall_ms: float
    cpu_ms: float


class _Device:
    """The trust state of a device, and the hub that signs for it."""

    def __init__(self, folder: Path, run_client: refresh.Refresh) -> None:
        owners = {"owner-vision": (["vision-*/*/*"], 2), **RELEASES}
        self.hub = HubDouble(image=Delegating(owners))
        self._order = DirectorTarget("vision-1", "1", "onnx-int8", 1, "onnxruntime", attempt=1)
        self.hub._listed = dict(_targets())
        self.trust = Trust(
            folder,
            device=self.hub.device,
            board="generic-x86_64",
            image_root=self.hub.image.roots[0],
            director_root=self.hub.director.roots[0],
            run_client=self._run,
        )
        self._run_client = run_client
        self._payload = b""
        self._request = refresh.Request(0.0)

    def _run(self, request: refresh.Request) -> refresh.Outcome:
        self._request = request
        return self._run_client(request)

    def request(self) -> bytes:
        """Return what the child was asked last."""
        return msgspec.msgpack.encode(self._request)

    def accept(self) -> _Taken:
        """Publish and assign anew; return what the verdict took of this process."""
        for topic, data in self.hub.image_messages():
            self.trust.take_image_role(topic.rpartition("/")[2], data)
        self._payload = self.hub.assignment(self._order)
        self.trust.take_assignment(self._payload)
        wall, cpu = time.perf_counter(), time.process_time()
        verdict = self.trust.judge(0.0, {})
        taken = _Taken(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu))
        if not isinstance(verdict, Accepted):
            raise TypeError(f"the update was not accepted: {verdict}")
        return taken

    def rounds(self) -> _Taken:
        """Return the medians over some updates."""
        taken = [self.accept() for _ in range(ROUNDS)]
        return _Taken(median(t.wall_ms for t in taken), median(t.cpu_ms for t in taken))

    def judge_again(self) -> None:
        """Take the same message once more, as after a reconnection."""
        self.trust.take_assignment(self._payload)
        self.trust.judge(0.0, {})

    def signatures(self) -> int:
        """Return how many signatures one verdict verifies."""
        with _counted() as calls:
            self.accept()
        return len(calls)


def _targets() -> Iterator[tuple[str, TargetFile]]:
    for number in range(MODELS):
        model = f"vision-{number}" if number % 2 else f"digits-{number}"
        image = ImageTarget(model, "1", "onnx-int8", 1, "onnxruntime")
        yield target_path(model, 1, "onnx-int8"), target_file(MANIFEST, image)


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Note the key of every signature that is verified."""
    calls: list[str] = []
    real = SSlibKey.verify_signature

    def verify(key: SSlibKey, signature: object, data: bytes) -> None:
        calls.append(key.keyid)
        real(key, signature, data)  # type: ignore[arg-type]  # passed on as it came

    SSlibKey.verify_signature = verify  # type: ignore[assignment,method-assign]  # put back below
    try:
        yield calls
    finally:
        SSlibKey.verify_signature = real  # type: ignore[method-assign]  # as it was


def _bare_verification_us() -> float:
    key, message = Ed25519PrivateKey.generate(), bytes(1000)
    signature, public = key.sign(message), key.public_key()
    return microseconds(lambda: public.verify(signature, message), calls=200)


def _attested_us() -> float:
    hub = HubDouble()
    answer = hub.director.attest(TimeStatement("cam-1", bytes(16), time.time(), bytes(16)))
    with tempfile.TemporaryDirectory() as folder:
        check = refresh.TimeCheck(
            folder,
            hub.director.roots[0],
            hub.director.roots,
            answer.statement,
            answer.keyid,
            answer.signature,
        )
        if tufclient.check_time(check).fault:
            raise ValueError("the attested time was not believed")
        return microseconds(lambda: tufclient.check_time(check), calls=20)


def _children_ms() -> float:
    """Return the CPU time of the children that this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (usage.ru_utime + usage.ru_stime)


def _memory_mib(code: str, given: bytes = b"") -> float:
    """Return the most memory that a Python held while it ran this code.

    Not by `getrusage`: what the parent held before the child's exec counts there.
    """
    told = "import pathlib, sys; sys.stderr.write(pathlib.Path('/proc/self/status').read_text())"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}"], input=given, capture_output=True, check=True
    )
    line = next(line for line in done.stderr.decode().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _timed_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return median(times) * 1000
