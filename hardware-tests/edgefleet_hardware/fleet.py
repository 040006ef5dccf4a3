"""Targets that are enrolled devices: a bundle goes the way every model goes, and the device says.

The bundle is handed to the hub (`POST /v1/bundles`) as a version of a model of its own,
`compat-MODEL`, and rolled out to the one device: signed, verified there, tried in a child process
against its golden vectors, activated. Nothing that serves on the device is touched. Rules:

1. Confirmed is right. Refused, rejected or rolled back is not, with the device's own reason.
2. A device that does not end it in time, or a hub that cannot be reached, is no result.
3. The latency is the median that the device measured in its trial: of one load, so it tells no
   distribution and is not compared with a baseline.

The token (`EDGEFLEET_TOKEN`) needs to make, release and operate models named `compat-*`, no more.
"""

import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
from msgspec import Struct, field

from edgefleet_converters import bundle_archive
from edgefleet_hardware.cases import Case
from edgefleet_hardware.errors import BadUseError, TargetUnavailableError
from edgefleet_hardware.outcomes import Kind, Outcome, latency
from edgefleet_hardware.runtimes import RuntimeName
from edgefleet_hardware.targets import About
from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import MalformedError

PREFIX = "compat-"
# A device on a slow link fetches for minutes; its own deadlines end an attempt before this.
LONGEST_S = 1800.0
_ASK_AGAIN_S = 0.5
# Names under which devices report their runtimes.
_RUNTIMES: dict[str, RuntimeName] = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
}
T = TypeVar("T")


class _Tried(Struct):
    latency_us: float
    memory_bytes: int = 0


class _Attempt(Struct):
    model: str
    tried: _Tried | None = None


class _Health(Struct):
    temperature_c: float | None = None


class _Device(Struct):
    """What is read of `GET /v1/devices/{device}`."""

    board: str
    runtimes: dict[str, str]
    attempts: list[_Attempt] = field(default_factory=list)
    health: _Health | None = None


class _Made(Struct):
    """What is read of a job's result."""

    rollout: int | None = None
    approval: int | None = None


class _Job(Struct):
    state: str
    error: str | None = None
    result: _Made = field(default_factory=_Made)


class _Part(Struct):
    device: str
    state: str
    reason: str | None = None


class _Rollout(Struct):
    state: str
    devices: list[_Part]


class _Begun(Struct):
    job: int


class Hub:
    """A hub's API.

    Args:
        url: `https://hub.example:8443`.
        token: of an account that may make, release and operate.
        ca: certificate of the hub's authority; None for those that the system trusts.
    """

    def __init__(self, url: str, token: str, ca: Path | None) -> None:
        try:
            trust = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise BadUseError(f"{ca}: no certificate of a hub: {error}") from error
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, verify=trust, timeout=120.0)

    def get(self, path: str, kind: type[T]) -> T:
        """Return the answer of `GET path`.

        Raises:
            TargetUnavailableError: the hub does not answer, or not as it should.
        """
        return self._read(kind, lambda: self._http.get(path))

    def hand_in(self, folder: Path, name: str, device: str) -> int:
        """Hand in a bundle for one device; return the number of the job.

        Raises:
            BadInputError: it is no whole bundle.
            TargetUnavailableError: the hub does not take it.
        """
        with tempfile.TemporaryFile() as archive:
            bundle_archive.pack([folder], archive)
            archive.seek(0)
            form = {"name": name, "to": f"device:{device}", "strategy": "direct"}
            files = {"archive": ("bundles.tar", archive)}
            begun = self._read(
                _Begun, lambda: self._http.post("/v1/bundles", data=form, files=files)
            )
        return begun.job

    def _read(self, kind: type[T], ask: Callable[[], httpx.Response]) -> T:
        try:
            answer = ask()
            if answer.is_error:
                raise TargetUnavailableError(
                    f"the hub answered {answer.status_code}: {answer.text[:500]}"
                )
            return msgspec.json.decode(answer.content, type=kind)
        except httpx.HTTPError as error:
            raise TargetUnavailableError(f"the hub cannot be reached: {error}") from error
        except msgspec.DecodeError as error:
            raise TargetUnavailableError(f"the hub's answer is not read: {error}") from error


@dataclass(frozen=True)
class DeviceTarget:
    """One runtime of one enrolled device."""

    hub: Hub
    device: str
    about: About
    longest_s: float = LONGEST_S

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Send every bundle to the device, one after the other.

        Raises:
            BadUseError: a case is no bundle: a device takes nothing else.
            TargetUnavailableError: hub or device did not answer in time.
        """
        return [self._try(case) for case in cases]

    def _try(self, case: Case) -> Outcome:
        if case.bundle is None:
            raise BadUseError(f"{case.name}: a device takes bundles; convert the model to one")
        name = f"{PREFIX}{case.name.split('/')[0]}"[:64]  # of a manifest, so letters that fit
        begun = self.hub.hand_in(case.bundle, name, self.device)
        job = self._wait("the hub's job", lambda: self._ended(begun))
        if job.state != "succeeded":
            return Outcome("refused", f"by the hub: {job.error}")
        if job.result.rollout is None:
            raise TargetUnavailableError(
                f"{name} waits for approval {job.result.approval}; let compat-* be of standard risk"
            )
        part = self._wait(f"{self.device}'s answer", lambda: self._said(job.result.rollout))
        return self._outcome(name, part)

    def _ended(self, number: int) -> _Job | None:
        job = self.hub.get(f"/v1/jobs/{number}", _Job)
        return job if job.state in ("succeeded", "failed") else None

    def _said(self, rollout: int | None) -> _Part | None:
        found = self.hub.get(f"/v1/rollouts/{rollout}", _Rollout)
        for part in found.devices:
            if part.device == self.device and part.state not in ("waiting", "assigned"):
                return part
        return None

    def _outcome(self, name: str, part: _Part) -> Outcome:
        device = self.hub.get(f"/v1/devices/{self.device}", _Device)
        tried = next((a.tried for a in device.attempts if a.model == name and a.tried), None)
        times = [tried.latency_us] if tried else []
        kind: Kind = "right" if part.state == "confirmed" else "refused"
        detail = "confirmed; the median of its trial" if kind == "right" else part.reason or ""
        return Outcome(
            kind,
            detail,
            latency(times),
            times,
            memory_bytes=tried.memory_bytes if tried else None,
            temperature_c=device.health.temperature_c if device.health else None,
        )

    def _wait(self, what: str, ask: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + self.longest_s
        while (answer := ask()) is None:
            if time.monotonic() > deadline:
                raise TargetUnavailableError(f"{what} did not come within {self.longest_s:g} s")
            time.sleep(_ASK_AGAIN_S)
        return answer


def targets(hub: Hub, device: str) -> list[DeviceTarget]:
    """Return the targets of a device: one for each runtime that it has.

    Raises:
        BadUseError: that is no name of a device.
        TargetUnavailableError: the hub does not know it, or it has no runtime.
    """
    try:
        identifiers.device_id(device)
    except MalformedError as error:
        raise BadUseError(str(error)) from error
    found = hub.get(f"/v1/devices/{device}", _Device)
    known = {
        _RUNTIMES[name]: version for name, version in found.runtimes.items() if name in _RUNTIMES
    }
    if not known:
        raise TargetUnavailableError(f"{device} has reported no runtime yet")
    return [
        DeviceTarget(hub, device, About(name, version, device, found.board))
        for name, version in sorted(known.items())
    ]
