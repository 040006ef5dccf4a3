"""The attacks that Uptane's own demonstration plays, on a whole device."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from edgefleet_agent.testing import target_file
from edgefleet_agent.trusting.trust import SETTLE_S, MetadataRefusedError, Waiting
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.repositories import keyfiles
from edgefleet_cloud.trust.repositories.testing import Founded, founded, public, signer
from edgefleet_protocol import codec, trust
from edgefleet_protocol.messages import Assignment
from edgefleet_protocol.trust import target_path
from tests.attacks.register import Source, attack
from tests.attacks.world import (
    World,
    believed,
    evil,
    good,
    limited_to,
    no_cross_check,
    no_newer_roots,
    no_signatures,
    replaced,
    rewritten,
    stranger,
    thief_of,
)
from tests.trust.ceremony import Fleet, accepted, listed

Worlds = Callable[..., World]


@attack(
    "arbitrary package on the director without keys",
    Source.DEMONSTRATION,
    stopped_by="the director's signatures, on every role of the assignment",
    without="the check of signatures",
)
def test_a_package_put_on_the_director_without_its_keys(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the hub's database or topics orders a bundle that is listed, not ordered.

    (One that is not even listed is `stolen director key`: with the keys it gets no further.)
    """

    def attempt(where: World) -> None:
        target = where.install(good(), 1)
        other = where.hub.release(good("v2"), 2)
        where.hear(where.hub.image_messages())
        forged = stranger(where.hub).assignment(other)
        real = codec.decode(where.hub.assignment(target), Assignment)
        false = codec.decode(forged, Assignment)
        where.hear([
            where.ordering(
                codec.encode(
                    Assignment(real.roots, false.timestamp, false.snapshot, false.targets)
                )
            )
        ])  # fmt: skip

    with monkeypatch.context() as patch:
        no_signatures(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "bad-signature")]


@attack(
    "arbitrary package on the image repository without keys",
    Source.DEMONSTRATION,
    stopped_by="the image repository's signatures; and a device runs what both repositories name",
    without="the check of signatures",
)
def test_a_package_put_on_the_image_repository_without_its_keys(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that its owner vouches for on other boards only is made to look as if for all.

    An altered digest would get nowhere even without signatures: the director names the right one.
    """

    def attempt(where: World) -> None:
        where.install(good(), 1)
        barred = where.hub.release(good("v2"), 2)
        path = target_path(barred.model, 2, barred.variant)
        limited_to(where, path, ["rpi4"])

        def for_all(signed: dict[str, Any]) -> None:
            if "targets" in signed:
                del signed["targets"][path]["custom"]["boards"]

        where.hear([(t, rewritten(d, for_all)) for t, d in where.hub.image_messages()])
        where.hear([where.ordering(where.hub.assignment(barred))])

    with monkeypatch.context() as patch:
        no_signatures(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused[0] == ("image metadata", "bad-signature")


@attack(
    "replay",
    Source.DEMONSTRATION,
    stopped_by="the device's own fsynced count of assignments, which outlives the files of its TUF "
    "client",
    without="the count of assignments, on a device whose TUF files a power cut has emptied",
)
def test_an_old_assignment_is_replayed(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right keys signed it, it has not expired, and the hub has withdrawn it since."""

    def attempt(where: World) -> None:
        target = where.install(good(), 1)
        withdrawn = where.hub.release(good("recalled", model="doors"), 2)
        where.hear(where.hub.image_messages())
        old = where.hub.assignment(target, withdrawn)  # on its way when it was withdrawn
        where.order(target)
        for path in (where.store / "trust" / "director").glob("[st]*.json"):
            path.write_bytes(b"")
        where.restart()
        where.hear([*where.hub.image_messages(), where.ordering(old)])

    with monkeypatch.context() as patch:
        patch.setattr(trust, "check_instructions", lambda *_, **__: None)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves("doors") == "recalled"
    ours = world()
    attempt(ours)
    assert ours.serves("doors") == ""
    assert ours.refused == [("assignment", "rollback")]


@attack(
    "stolen director key",
    Source.DEMONSTRATION,
    stopped_by="the image repository, whose keys the thief has not: only what it lists is run. "
    "They are another machine's where a model has an owner role; see below for those that have "
    "none",
    without="the comparison of the two repositories",
)
def test_the_directors_keys_are_stolen(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thief signs an order for a bundle of its own, under the path of a released one."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        path = target_path(target.model, 2, target.variant)
        bad = evil("v2")
        where.hub.blobs |= bad.blobs | {bad.digest: bad.data}
        where.hear(where.hub.image_messages())
        forged = where.hub.assignment(target, files={path: target_file(bad.data, target)})
        where.hear([where.ordering(forged)])

    with monkeypatch.context() as patch:
        no_cross_check(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
        assert unchecked.answers_the_opposite()
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert not ours.answers_the_opposite()
    assert ours.refused == [("assignment", "mix-and-match")]


@attack(
    "both repositories compromised",
    Source.DEMONSTRATION,
    stopped_by="nothing: whoever holds the keys of both is the owner. Those of owner roles, "
    "targets and roots are offline; a whole hub that is stolen gets the models that nobody has "
    "claimed",
    without="not shown: it succeeds against our device as it is, and the test says so",
)
def test_both_repositories_are_compromised_and_the_attack_succeeds(world: Worlds) -> None:
    """No check is left that could tell this release from one of the owner."""
    ours = world()
    ours.install(good(), 1)
    ours.order(ours.hub.release(evil(), 2))
    assert ours.serves() == "evil"
    assert ours.answers_the_opposite()
    assert ours.refused == []


@attack(
    "recovery by key revocation",
    Source.DEMONSTRATION,
    stopped_by="a new root, signed by the root keys, that names other director keys; devices walk "
    "from root to root by themselves",
    without="the walk to newer roots",
)
def test_after_a_theft_the_keys_are_revoked_and_the_fleet_goes_on(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack is the theft; what is shown is that the owner gets the device back."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        where.hub.director.rotate()
        where.order(where.hub.release(good("v2"), 2))

    with monkeypatch.context() as patch:
        no_newer_roots(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v1"
        assert unchecked.refused == [("assignment", "bad-signature")]
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"
    assert ours.refused == []


@attack(
    "use of revoked keys",
    Source.DEMONSTRATION,
    stopped_by="the root that the device has walked to: it names the new keys only, and its "
    "version never goes back",
    without="the walk to newer roots",
)
def test_revoked_keys_are_used(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thief orders the release that the owner has replaced, with keys that were good once."""

    def attempt(where: World) -> None:
        old = where.install(good(), 1)
        thief = thief_of(where.hub.director)
        where.hub.director.rotate()
        where.order(where.hub.release(good("v2"), 2))
        where.hub.director = thief
        where.hub.sequence += 1
        withdrawn = where.hub.assignment(replaced(old, attempt=9))
        where.hear([where.ordering(withdrawn)])

    with monkeypatch.context() as patch:
        no_newer_roots(patch)
        unchecked = world()
        attempt(unchecked)
        assert [target.attempt for target in believed(unchecked)] == [9]
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"
    assert ours.refused == [("assignment", "bad-signature")]


def test_a_hub_stolen_as_a_whole_gets_what_nobody_claimed_and_nothing_of_an_owner(
    tmp_path: Path, hubs: Callable[[str], Services]
) -> None:
    """How far `both repositories compromised` reaches when the offline keys are where they belong.

    The thief has every file of the hub's machine: the director's keys and all online keys of the
    image repository, and signs by himself, past the hub's own code.
    """
    fleet = Fleet.of(founded(tmp_path / "hub", time.time), hubs("database").database)
    fleet.release(("colours", 1), ("doors", 1))
    owners = [signer("owner-1"), signer("owner-2")]
    fleet.ceremonies.delegate("acme", ["doors"], public(owners), 2)
    fleet.sign("targets-1", "targets-2", *owners)
    assert fleet.founded.images.owners() == {"doors": "owner-acme"}
    device = fleet.device(tmp_path / "device")
    assert accepted(device.take(fleet.assignment("doors", 1, 1))) == [("doors", 1)]

    forged = signed_by_a_thief(fleet.founded, ["colours", "doors"])
    assert accepted(device.take(fleet.assignment("colours", 2, 2), forged)) == [("colours", 2)]
    assert isinstance(device.take(fleet.assignment("doors", 2, 3), forged), Waiting)
    with pytest.raises(MetadataRefusedError, match="the image repository does not list it") as told:
        device.trust.judge(time.monotonic() + SETTLE_S, {})
    assert told.value.reason == "mix-and-match"


def signed_by_a_thief(hub: Founded, models: list[str]) -> dict[str, bytes]:
    """Return image metadata in which the hub's own role lists a second release of some models."""
    keys = [keyfiles.read(path, None) for path in (hub.home / "images" / "keys").glob("*.pem")]
    roles = {role: Metadata.from_bytes(data) for role, data in hub.images.metadata().items()}

    def sign(role: str) -> MetaFile:
        roles[role].signatures.clear()
        for key in keys:
            roles[role].sign(key, append=True)
        return MetaFile(roles[role].signed.version)

    for role in ("releases", "snapshot", "timestamp"):
        roles[role].signed.version += 1
    for model in models:
        path, entry = listed(model, 2)
        custom = {"custom": msgspec.to_builtins(entry.target)}
        roles["releases"].signed.targets[path] = TargetFile(
            entry.length, {"sha256": entry.digest}, path, custom
        )
    roles["snapshot"].signed.meta["releases.json"] = sign("releases")
    roles["timestamp"].signed.snapshot_meta = sign("snapshot")
    sign("timestamp")
    return {role: metadata.to_bytes() for role, metadata in roles.items()}
