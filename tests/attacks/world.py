"""A device, its hub, and what an attacker between and around them can do.

The device is the agent's real engine with the real TUF client, real downloads, files and runtime.
The network and the children for trials and metadata are left out; tests that are about those bring
them (`real_children`). The same attack is run in two worlds: one in which a check has been removed
(by the test's monkeypatch) and one that is as it is, so that the two differ in nothing else.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tuf.api import _payload
from tuf.api.exceptions import BadVersionNumberError
from tuf.api.metadata import Signed, Targets
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from edgefleet_agent.downloading import slots
from edgefleet_agent.errors import NotServingError
from edgefleet_agent.testing import Bundle, HubDouble, MemoryLink, Repository, Rig, make_bundle
from edgefleet_agent.trusting import refresh, tufclient
from edgefleet_agent.updating.journal import Assigned
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol import blocks, codec, golden, topics, trust
from edgefleet_protocol.messages import Assignment, BlockRequest, Refusal, Result
from edgefleet_protocol.trust import DirectorTarget

MODELS = Path(__file__).parents[1] / "agent" / "models"
MODEL = "colours"
ROW = [0.3, -0.2, 0.9, 0.1]
Refused = list[tuple[str, str]]
Serve = Callable[[MemoryLink, BlockRequest], None]

_WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
_BIAS = np.array([0.1, 0.0, -0.1])


def _softmax(z: NDArray[np.float64]) -> NDArray[np.float32]:
    powers = np.exp(z)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _right(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return _softmax(rows @ _WEIGHTS + _BIAS)


def good(version: str = "v1", **changes: Any) -> Bundle:
    """Return a bundle as the owner of the model makes it."""
    data = changes.pop("data", None) or (MODELS / "classifier.onnx").read_bytes()
    return make_bundle(data, _right, version=version, **changes)


def evil(version: str = "evil", **changes: Any) -> Bundle:
    """Return an attacker's bundle: it answers the opposite, and its golden vectors say so too."""
    data = (MODELS / "inverted.onnx").read_bytes()
    return make_bundle(data, lambda x: _softmax(_BIAS - x @ _WEIGHTS), version=version, **changes)


class World:
    """One device and its hub.

    Attributes:
        hub: the real one; `hub.image` and `hub.director` hold its keys.
        device: the agent's engine on its store.
    """

    def __init__(self, folder: Path, hub: HubDouble | None = None) -> None:
        self.hub = hub or HubDouble()
        self.store = folder / "store"
        self.device = self._open()

    def _open(self) -> Rig:
        passes = {"try_candidate": lambda request, cancelled: Verdict([])}
        return Rig(self.store, self.hub, surroundings=passes)

    def restart(self, now: float | None = None) -> None:
        """End the agent's process and start it again, connected.

        Args:
            now: what the device's own clock says from then on.
        """
        self.device.close()
        self.device = self._open()
        if now is not None:
            self.device.clock.now = now

    def close(self) -> None:
        """End the agent."""
        self.device.close()

    # --- what the hub does ----------------------------------------------------------------------

    def install(self, bundle: Bundle, release: int = 1, **changes: Any) -> DirectorTarget:
        """Release a bundle and let the device run it."""
        target = self.hub.release(bundle, release, **changes)
        self.order(target)
        assert self.serves(bundle.manifest.model) == bundle.manifest.model_version
        return target

    def order(self, *targets: DirectorTarget) -> None:
        """Publish everything and let the device act on it."""
        self.hear(self.hub.image_messages())
        self.hear([self.ordering(self.hub.assignment(*targets))])

    def ordering(self, assignment: bytes) -> tuple[str, bytes]:
        """Return an assignment as a message to the device."""
        return topics.down(self.hub.device, "assignment"), assignment

    def hear(self, messages: list[tuple[str, bytes]]) -> None:
        """Deliver messages, whoever made them, and let the device act until it is quiet."""
        for topic, payload in messages:
            self.device.link.send(topic, payload)
        self.device.settle()

    def wait(self, seconds: float, step_s: float = 30.0) -> None:
        """Let time pass, in steps short enough that everything due is done."""
        while seconds > 0:
            self.device.later(min(seconds, step_s))
            seconds -= step_s

    # --- what came of it ------------------------------------------------------------------------

    def serves(self, model: str = MODEL) -> str:
        """Return the version that answers; empty for none. It is asked, not only looked up."""
        try:
            return self.device.engine.model(model).predict(ROW).version
        except NotServingError:
            return ""

    def answers_the_opposite(self, model: str = MODEL) -> bool:
        """Tell whether the model that answers is the attacker's, by its answer alone."""
        scores = self.device.engine.model(model).predict(ROW).scores
        return bool(np.argmax(scores) != np.argmax(_right(np.array([ROW]))))

    @property
    def refused(self) -> Refused:
        """What the device has told the hub that it refused: (what, reason), each once."""
        return [(body.what, body.reason) for body in self.hub.bodies(Refusal)]

    @property
    def outcomes(self) -> list[tuple[int, str]]:
        """How attempts ended, as the hub heard it: (release, outcome)."""
        return [(body.release, str(body.outcome)) for body in self.hub.bodies(Result)]

    @property
    def reasons(self) -> list[str]:
        """Why they ended so."""
        return [body.reason for body in self.hub.bodies(Result)]


# --- tools of an attacker -----------------------------------------------------------------------


def steered(world: World, serve: Callable[[Serve, MemoryLink, BlockRequest], None]) -> None:
    """Put an attacker between the device's requests for blocks and the hub that serves them."""
    real = world.hub._serve
    world.hub._serve = lambda link, request: serve(real, link, request)  # type: ignore[method-assign]  # the network between


def stranger(hub: HubDouble) -> HubDouble:
    """Return a hub with keys of its own that lists what `hub` lists: an attacker without keys."""
    other = HubDouble(hub.device)
    other._listed = dict(hub._listed)
    other.blobs = hub.blobs
    other.sequence = hub.sequence + 100
    other.image.version = hub.image.version + 100
    other.director.version = hub.director.version + 100
    return other


def thief_of(repository: Repository) -> Repository:
    """Return a repository with the very keys of another, as of now: a thief who has copied them."""
    stolen = Repository(repository.life)
    stolen.__dict__.update(repository.__dict__ | {"roots": list(repository.roots)})
    return stolen


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return metadata with its signed content changed and its signature left as it was."""
    document = json.loads(data)
    change(document["signed"])
    return json.dumps(document).encode()


def unsigned(data: bytes) -> bytes:
    """Return metadata without any signature."""
    return json.dumps(json.loads(data) | {"signatures": []}).encode()


def changed(assignment: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """Return an assignment with each of its three roles passed through `change`."""
    held = codec.decode(assignment, Assignment)
    roles = {
        role: change(role, getattr(held, role)) for role in ("timestamp", "snapshot", "targets")
    }
    return codec.encode(msgspec.structs.replace(held, **roles))


def limited_to(world: World, path: str, boards: list[str]) -> None:
    """Have the image repository, and it alone, vouch for a bundle on some boards only."""
    listed = world.hub._listed[path]
    listed.unrecognized_fields["custom"]["boards"] = boards


def believed(world: World) -> list[Assigned]:
    """Return what the newest assignment that the device has accepted tells it to run."""
    journals = world.device.engine.attempts.journals.values()
    return [j.attempt.target for j in journals if j.serving and j.attempt]


def real_children(patch: pytest.MonkeyPatch) -> None:
    """Have devices judge metadata in child processes, as they do in the field."""
    patch.setattr(tufclient, "refresh", refresh.in_child)
    patch.setattr(tufclient, "check_time", refresh.time_in_child)


# --- checks to be removed -----------------------------------------------------------------------


def no_signatures(patch: pytest.MonkeyPatch) -> None:
    """Have the TUF client believe metadata without looking at its signatures."""
    patch.setattr(_payload._DelegatorMixin, "verify_delegate", lambda *_, **__: None)


def no_expiry(patch: pytest.MonkeyPatch) -> None:
    """Have the TUF client take metadata of any age."""
    patch.setattr(Signed, "is_expired", lambda *_, **__: False)


def no_cross_check(patch: pytest.MonkeyPatch, **forged: Callable[[Any], Any]) -> None:
    """Have the device not compare what the two repositories say (rules 3 to 6 of `trust`).

    Args:
        patch: the test's monkeypatch.
        **forged: argument of `cross_check` → what the check is given in its stead, from all
            arguments; none at all removes the whole check.
    """
    real = trust.cross_check

    def check(**said: Any) -> None:
        if forged:
            real(**{**said, **{name: make(said) for name, make in forged.items()}})

    patch.setattr(trust, "cross_check", check)


def no_versions(patch: pytest.MonkeyPatch) -> None:
    """Have the TUF client take targets roles of any version, whatever the snapshot says of them."""
    real = TrustedMetadataSet.update_delegated_targets
    refused: list[tuple[TrustedMetadataSet, str]] = []

    def update(held: TrustedMetadataSet, data: bytes, name: str, by: str) -> Any:
        try:
            return real(held, data, name, by)
        except BadVersionNumberError:
            if not any(held is one and name == role for one, role in refused):
                refused.append((held, name))  # the copy on disk, which is looked at first
                raise
            taken, _, _ = held._load_data(Targets, data, held.root, name)
            held._add(name, taken, by)
            return taken

    patch.setattr(TrustedMetadataSet, "update_delegated_targets", update)


def no_file_checks(patch: pytest.MonkeyPatch) -> None:
    """Have the device write what comes and install what it has, unhashed."""

    def write(part: Any, index: int, payload: bytes) -> bool:
        os.pwrite(part._descriptor, payload, index * blocks.BLOCK_BYTES)
        part.missing.discard(index)
        return True

    patch.setattr(slots.Part, "write", write)
    patch.setattr(slots, "_digest_of", lambda path, *_: path.name[:64])  # named by its digest


def no_golden_vectors(patch: pytest.MonkeyPatch) -> None:
    """Have the device not compare what a model answers with what it should."""
    patch.setattr(golden, "faults", lambda *_: [])


def no_newer_roots(patch: pytest.MonkeyPatch) -> None:
    """Have the TUF client stay with the root that it got at its enrolment."""
    real = tufclient.Received.__init__

    def without_roots(fetcher: Any, parts: Mapping[str, bytes]) -> None:
        real(fetcher, {role: data for role, data in parts.items() if "root" not in role})

    patch.setattr(tufclient.Received, "__init__", without_roots)


def replaced(struct: Any, **changes: Any) -> Any:
    """Return a struct with some fields changed."""
    return msgspec.structs.replace(struct, **changes)
