"""What The Update Framework names beyond Uptane's attacks, on a whole device."""

from collections.abc import Callable
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api import _payload
from tuf.api.metadata import Metadata

from edgefleet_agent.testing import HubDouble, Repository, padded_onnx
from edgefleet_agent.trusting import trust as judging
from edgefleet_agent.trusting import tufclient
from edgefleet_protocol import blocks, trust
from edgefleet_protocol.trust import target_path
from tests.attacks.register import Source, attack
from tests.attacks.world import (
    MODELS,
    World,
    evil,
    good,
    no_file_checks,
    no_golden_vectors,
    real_children,
    thief_of,
)

Worlds = Callable[..., World]


@attack(
    "extraneous dependencies",
    Source.TUF,
    stopped_by="there are no dependencies: a bundle's files are a closed list of roles, and every "
    "path that is ordered must be listed by the image repository",
    without="the image repository's word on each path",
)
def test_something_else_is_ordered_along(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the director's key, a model of the attacker's is ordered beside the real one."""

    def attempt(where: World) -> str:
        real = where.hub.release(good(), 1)
        where.hear(where.hub.image_messages())
        extra = where.hub.release(evil(model="helper"), 2)  # in no image metadata that is published
        path = target_path("helper", 2, extra.variant)
        listed.update({path: where.hub._listed[path]})
        where.hear([where.ordering(where.hub.assignment(real, extra))])
        where.wait(90.0)  # it might be listed in what is yet to come
        return where.serves("helper")

    listed: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        real_find = tufclient.Client.find
        patch.setattr(
            tufclient.Client, "find", lambda client, path: real_find(client, path) or listed[path]
        )
        assert attempt(world()) == "evil"
    ours = world()
    assert attempt(ours) == ""
    assert ours.serves() == ""  # all of it is refused
    assert ours.refused == [("assignment", "mix-and-match")]


@attack(
    "fast-forward",
    Source.TUF,
    stopped_by="versions and counts bind to the keys that signed them: with the stolen key "
    "revoked, what it raised beyond all measure binds no more",
    without="that binding (one count, whoever signed)",
)
def test_a_thief_raises_all_counts_beyond_measure(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thief wants the device to take everything that the hub signs later for too old."""

    def attempt(where: World) -> None:
        target = where.install(good(), 1)
        thief = thief_of(where.hub.director)
        thief.version = 2**31
        owner, where.hub.director = where.hub.director, thief
        where.hear([where.ordering(where.hub.assignment(target, sequence=2**40))])
        assert where.device.engine.state().assignment == 2**40
        where.hub.director = owner
        owner.rotate()
        where.order(where.hub.release(good("v2"), 2))

    with monkeypatch.context() as patch:
        patch.setattr(judging, "floor_of", lambda counters, *_: counters.sequence)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v1"
        assert unchecked.refused == [("assignment", "rollback")]
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"
    assert ours.refused == []


@attack(
    "malicious mirrors",
    Source.TUF,
    stopped_by="the digest of each block, of each blob and of each file, all under the signed "
    "manifest; wrong answers are counted and told",
    without="the digests of blocks, blobs and files, and the golden vectors, which find it too",
)
def test_a_mirror_gives_something_else(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker, relay or cache answers with a model of its own, block by block."""
    right, wrong = ((MODELS / f"{name}.onnx").read_bytes() for name in ("classifier", "inverted"))
    length = 2 * blocks.BLOCK_BYTES
    # Neither compresses, so both travel as they are, and are of one length.
    offered = padded_onnx(wrong, length - len(wrong) + len(right))
    bundle = good("v2", data=padded_onnx(right, length))

    def attempt(where: World) -> None:
        where.install(good(), 1)
        blob = bundle.manifest.file("model").transfer.digest
        real = where.hub.block

        def block(digest: str, index: int) -> bytes:
            if digest != blob:
                return real(digest, index)
            return offered[index * blocks.BLOCK_BYTES : (index + 1) * blocks.BLOCK_BYTES]

        where.hub.block = block  # type: ignore[method-assign]  # the mirror, not the hub
        where.order(where.hub.release(bundle, 2))

    with monkeypatch.context() as patch:
        no_file_checks(patch)
        no_golden_vectors(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
        assert unchecked.answers_the_opposite()
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.outcomes[-1] == (2, "rejected")
    assert ("artifact block", "hash-mismatch") in ours.refused


class Shared(Repository):
    """A repository whose targets role needs the signatures of two persons."""

    def __init__(self) -> None:
        super().__init__()
        self.second: CryptoSigner | None = CryptoSigner.generate_ed25519()
        self._root.add_key(self.second.public_key, "targets")
        self._root.roles["targets"].threshold = 2
        self.roots = [super()._sign(self._root)]

    def _sign(self, role: Any) -> bytes:
        signed = Metadata(role)
        signed.sign(self._signer)
        second = getattr(self, "second", None)
        if second and role.type == "targets":
            signed.sign(second, append=True)
        return signed.to_bytes()


@attack(
    "key compromise",
    Source.TUF,
    stopped_by="thresholds: root and targets of the image repository need two of three keys, an "
    "owner's role as many as its owner wants",
    without="the threshold (one signature is enough)",
)
def test_one_of_the_owners_keys_is_stolen(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thief has the director's keys, the online ones, and one of two of the targets role."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        assert isinstance(where.hub.image, Shared)
        where.hub.image.second = None
        where.order(where.hub.release(evil(), 2))
        where.wait(90.0)

    def shared() -> HubDouble:
        hub = HubDouble()
        hub.image = Shared()
        return hub

    with monkeypatch.context() as patch:
        patch.setattr(
            _payload.VerificationResult, "verified", property(lambda result: bool(result.signed))
        )
        unchecked = world(hub=shared())
        attempt(unchecked)
        assert unchecked.answers_the_opposite()
    with monkeypatch.context() as patch:
        real_children(patch)
        ours = world(hub=shared())
        attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused[0] == ("image metadata", "bad-signature")


@attack(
    "wrong software",
    Source.TUF,
    stopped_by="the device's name, inside the signed part of its assignment",
    without="the comparison of that name",
)
def test_the_assignment_of_another_device_is_given(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is right, new and signed, for the device beside."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        other = where.hub.release(good("beside"), 2)
        where.hear(where.hub.image_messages())
        where.hear([where.ordering(where.hub.assignment(other, device="cam-2"))])

    real = trust.check_instructions
    with monkeypatch.context() as patch:
        patch.setattr(
            trust, "check_instructions", lambda said, _, highest: real(said, said.device, highest)
        )
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "beside"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "wrong-device")]
