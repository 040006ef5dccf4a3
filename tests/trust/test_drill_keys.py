"""Drills: a key is lost or stolen, and the fleet recovers without anybody touching a device.

The device is the agent's own trust client with its own memory; the hub's keys are replaced by the
ceremonies that people follow (docs/trust.md).
"""

import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgefleet_agent.trusting.refresh import in_child
from edgefleet_agent.trusting.trust import MetadataRefusedError
from edgefleet_cloud.cli import app
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, DamagedError
from edgefleet_cloud.trust.repositories import drafts, layout
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_cloud.trust.repositories.testing import founded, signer
from tests.trust.ceremony import Device, Fleet, accepted, keyid_of

DIGITS = ("digits", 1)
NEXT = ("digits", 2)


@pytest.fixture
def fleet(tmp_path: Path, database: Database) -> Fleet:
    made = Fleet.of(founded(tmp_path / "hub", time.time), database)
    made.release(DIGITS)
    return made


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    made = fleet.device(tmp_path / "device")
    assert accepted(made.take(fleet.assignment(*DIGITS, sequence=1))) == [DIGITS]
    return made


def thief(fleet: Fleet, folder: Path) -> Director:
    """Return a copy of the hub's director, online keys and all."""
    shutil.copytree(fleet.founded.home / "director", folder)
    return Director.open(folder, time.time)


def test_a_lost_timestamp_key_is_replaced_by_two_root_holders(tmp_path, fleet, device):
    home = fleet.founded.home
    (lost,) = (home / "images" / "keys").glob("timestamp-*.pem")
    lost.unlink()
    # The hub says what is missing; the others of its keys are enough to begin the ceremony.
    with pytest.raises(DamagedError, match=r"key of image.timestamp is not in"):
        ImageRepository.open(home / "images", time.time)
    fleet.ceremonies.rotate("image.timestamp")
    assert fleet.sign("root-1", "root-3") == [layout.IMAGE_ROOT]
    fleet.founded.reopen()
    fleet.release(DIGITS, NEXT)
    assert accepted(device.take(fleet.assignment(*NEXT, sequence=2))) == [NEXT]


def test_a_hub_that_cannot_start_for_a_lost_key_recovers_by_a_root_signed_elsewhere(
    tmp_path, fleet, device
):
    home, desk = fleet.founded.home, tmp_path / "desk"
    for folder in ("images", "director"):
        for lost in (home / folder / "keys").glob("timestamp-*"):
            lost.unlink()
    with pytest.raises(DamagedError, match=r"see `edgefleet trust recover`"):
        Director.open(home / "director", time.time)
    keys = [fleet.key_file(name, tmp_path) for name in ("root-1", "root-3")]

    assert "to be signed: director.root, image.root" in recover(home, desk).stderr
    for key in keys:
        edgefleet("trust", "sign", "--from", str(desk), "--key", key, "--yes")
    said = recover(home, desk).stderr
    assert "director.root: in force\nimage.root: in force\n" in said
    assert "no online key is lost" in said

    fleet.founded.reopen()
    fleet.release(DIGITS, NEXT)
    assert accepted(device.take(fleet.assignment(*NEXT, sequence=2))) == [NEXT]


def recover(home: Path, desk: Path) -> Result:
    return edgefleet("trust", "recover", str(desk), "--home", str(home))


def edgefleet(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result


def test_a_stolen_director_key_serves_the_thief_only_until_the_root_names_others(
    tmp_path, fleet, device
):
    fleet.release(DIGITS, NEXT)
    stolen = thief(fleet, tmp_path / "thief")
    # The thief moves the device to another released bundle: that much the director may do.
    assert accepted(device.take(fleet.assignment(*NEXT, sequence=2, director=stolen))) == [NEXT]

    touched = fleet.ceremonies.revoke(keyid_of(fleet.founded.director, "targets"))
    assert touched == [layout.DIRECTOR_ROOT]
    assert fleet.sign("root-1", "root-2") == [layout.DIRECTOR_ROOT]

    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=3))) == [DIGITS]
    with pytest.raises(MetadataRefusedError) as refused:
        device.take(fleet.assignment(*NEXT, sequence=4, director=stolen))
    assert refused.value.reason == "bad-signature"
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=5))) == [DIGITS]


@pytest.mark.parametrize("child", [False, True], ids=["in-process", "in-the-child"])
def test_a_thief_who_ran_all_counters_ahead_locks_no_device_out(tmp_path, fleet, child):
    device = fleet.device(tmp_path / "device", **({"run_client": in_child} if child else {}))
    device.take(fleet.assignment(*DIGITS, sequence=1))
    stolen = thief(fleet, tmp_path / "thief")
    honest, fleet.version = fleet.version, 2**31
    forward = fleet.assignment(*DIGITS, sequence=2**40, director=stolen)
    assert accepted(device.take(forward)) == [DIGITS]
    fleet.version = honest

    # Without new keys the device stays where the thief has put it: counters never go back.
    with pytest.raises(MetadataRefusedError) as refused:
        device.take(fleet.assignment(*DIGITS, sequence=2))
    assert refused.value.reason == "rollback"

    fleet.ceremonies.revoke(keyid_of(fleet.founded.director, "timestamp"))
    fleet.sign("root-1", "root-2")
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=3))) == [DIGITS]
    with pytest.raises(MetadataRefusedError) as refused:
        device.take(forward)
    assert refused.value.reason in ("bad-signature", "rollback")


def test_a_thief_who_ran_the_image_repository_ahead_locks_no_device_out(tmp_path, fleet, device):
    home = tmp_path / "thief"
    shutil.copytree(fleet.founded.home / "images", home)
    stolen = ImageRepository.open(home, time.time)
    stolen.sync({})
    for _ in range(40):  # forty publications ahead of the hub's
        stolen._next_snapshot()
    device.take(fleet.assignment(*DIGITS, sequence=1), stolen.metadata() | {"x": b""})

    key = fleet.founded.images.held().image_root.signed.roles["snapshot"].keyids[0]
    assert fleet.ceremonies.revoke(key) == [layout.IMAGE_ROOT, layout.TARGETS]
    fleet.sign("root-1", "root-2", "targets-1", "targets-3")
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=2))) == [DIGITS]


def test_one_root_key_is_lost_and_the_other_two_put_another_in_its_place(fleet, device):
    heir = signer("root-4")
    assert fleet.ceremonies.rotate("root-2", heir.public_key) == [
        layout.IMAGE_ROOT,
        layout.DIRECTOR_ROOT,
    ]
    assert sorted(fleet.sign("root-1", "root-3")) == [layout.DIRECTOR_ROOT, layout.IMAGE_ROOT]
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=2))) == [DIGITS]
    # The heir counts from then on, the lost key no more.
    fleet.ceremonies.renew(layout.IMAGE_ROOT)
    assert fleet.sign("root-2", heir) == []
    assert fleet.sign("root-3") == [layout.IMAGE_ROOT]
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=3))) == [DIGITS]


def test_one_stolen_root_key_signs_nothing_by_itself(fleet, device):
    fleet.ceremonies.renew(layout.DIRECTOR_ROOT)
    assert fleet.sign("root-1") == []
    fleet.ceremonies.revoke("root-1")
    with pytest.raises(ConflictError, match="needs 2 keys"):
        fleet.ceremonies.revoke("root-2")
    present = fleet.ceremonies.drafts()
    assert not any(drafts.is_signed(n, present, fleet.ceremonies.held()) for n in present)
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=2))) == [DIGITS]


def test_a_stolen_targets_key_is_replaced_in_the_root_and_the_targets_are_signed_anew(
    fleet, device
):
    heir = signer("targets-4")
    fleet.ceremonies.rotate("targets-1", heir.public_key)
    # The file in force has the stolen key's signature, so its holders sign it again.
    assert set(fleet.ceremonies.drafts()) == {layout.IMAGE_ROOT, layout.TARGETS}
    assert fleet.sign("root-1", "root-2") == []
    assert fleet.sign("targets-3", heir) == [layout.TARGETS]
    assert fleet.ceremonies.drafts() == {}
    assert accepted(device.take(fleet.assignment(*DIGITS, sequence=2))) == [DIGITS]


def test_a_device_that_slept_through_all_ceremonies_walks_along_every_root(tmp_path, fleet):
    sleeper = fleet.device(tmp_path / "sleeper")
    for number in range(4, 8):
        heir = signer(f"root-{number}")
        fleet.founded.signers[f"root-{number}"] = heir
        fleet.ceremonies.rotate(f"root-{number - 3}", heir.public_key)
        fleet.sign(f"root-{number - 2}", f"root-{number - 1}")
    fleet.ceremonies.rotate("director.online")
    fleet.ceremonies.rotate("image.online")
    fleet.sign("root-5", "root-6", "targets-1", "targets-2")
    assert fleet.founded.director.root_version == 6
    assert accepted(sleeper.take(fleet.assignment(*DIGITS, sequence=1))) == [DIGITS]
