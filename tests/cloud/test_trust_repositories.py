"""Image and director repositories, read by python-tuf's own client as a device reads them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_cloud.trust.repositories.images import (
    SNAPSHOT_LIFE_S,
    TARGETS_LIFE_S,
    TIMESTAMP_LIFE_S,
    ImageEntry,
    ImageRepository,
)
from edgefleet_cloud.trust.repositories.roots import ROOT_LIFE_S
from edgefleet_protocol import codec, trust
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import Assignment
from edgefleet_protocol.trust import DirectorTarget, ImageTarget, Instructions

NOW = 4_000_000_000.0  # python-tuf's client looks at the real clock: far in its future
PATH = trust.target_path("digits", 1, "onnx-int8")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Fetcher(FetcherInterface):
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[1]
        if name not in self.files:
            raise DownloadHTTPError(f"no {name}", 404)
        return iter([self.files[name]])


def as_files(metadata: dict[str, bytes]) -> dict[str, bytes]:
    """Return topic names as the file names that python-tuf asks for."""
    names = {
        role: f"{role.removeprefix('root-')}.root.json" if role.startswith("root-") else role
        for role in metadata
    }
    return {
        name if name.endswith(".json") else f"{name}.json": metadata[role]
        for role, name in names.items()
    }


def device(folder: Path, files: dict[str, bytes], root: bytes) -> Updater:
    folder.mkdir(exist_ok=True)
    return Updater(
        str(folder),
        "mqtt://meta/",
        fetcher=Fetcher(files),
        bootstrap=root,
        config=UpdaterConfig(prefix_targets_with_hash=False),
    )


def entry(version: str = "1", release: int = 1) -> ImageEntry:
    target = ImageTarget("digits", version, "onnx-int8", release, "onnxruntime", ["rpi4"])
    return ImageEntry(1234, "ab" * 32, target)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def images(tmp_path: Path, clock: Clock) -> ImageRepository:
    return ImageRepository.open(tmp_path / "images", clock)


def versions(images: ImageRepository) -> dict[str, int]:
    return {
        role: json.loads(payload)["signed"]["version"]
        for role, payload in images.metadata().items()
    }


def test_a_device_finds_exactly_what_was_released(tmp_path, images):
    assert images.sync({PATH: entry()})
    updater = device(tmp_path / "d", as_files(images.metadata()), images.root_1)
    updater.refresh()
    found = updater.get_targetinfo(PATH)
    assert (found.length, found.hashes) == (1234, {"sha256": "ab" * 32})
    assert trust.read_custom(ImageTarget, found.custom, PATH) == entry().target
    assert updater.get_targetinfo("digits/r2/onnx-int8.json") is None


def test_what_is_in_line_already_is_not_signed_again(images):
    assert images.sync({PATH: entry()})
    before = images.metadata()
    assert not images.sync({PATH: entry()})
    assert not images.refresh()
    assert images.metadata() == before


def test_what_is_no_longer_released_is_taken_off(tmp_path, images):
    images.sync({PATH: entry()})
    assert images.sync({})
    updater = device(tmp_path / "d", as_files(images.metadata()), images.root_1)
    assert updater.get_targetinfo(PATH) is None


def test_versions_go_on_after_a_restart(tmp_path, clock, images):
    images.sync({PATH: entry()})
    before = images.metadata()
    again = ImageRepository.open(tmp_path / "images", clock)
    assert again.metadata() == before
    assert again.sync({PATH: entry("2", 2)})
    assert versions(again) == {"root-1": 1, "targets": 3, "snapshot": 3, "timestamp": 3}


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_crash_at_any_file_leaves_a_repository_that_a_device_follows(
    tmp_path, clock, images, monkeypatch, written
):
    images.sync({PATH: entry()})
    follower = tmp_path / "follower"
    device(follower, as_files(images.metadata()), images.root_1).refresh()
    real, calls = durable.write, []

    def dying(path: Path, data: bytes, *, mode: int) -> None:
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, data, mode=mode)

    monkeypatch.setattr(durable, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        images.sync({PATH: entry("2", 2)})
    monkeypatch.setattr(durable, "write", real)
    again = ImageRepository.open(tmp_path / "images", clock)
    assert again.sync({PATH: entry("2", 2)}) is (written == 0)
    updater = device(follower, as_files(again.metadata()), images.root_1)
    assert updater.get_targetinfo(PATH).custom["version"] == "2"


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_never_lets_half_a_repository_out(tmp_path, images, monkeypatch, written):
    images.sync({PATH: entry()})
    before = images.metadata()
    real, calls = durable.write, []

    def full(path: Path, data: bytes, *, mode: int) -> None:
        if len(calls) == written:
            raise OSError("no space left on device")
        calls.append(path)
        real(path, data, mode=mode)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="no space"):
        images.sync({PATH: entry("2", 2)})
    assert images.metadata() == before
    monkeypatch.setattr(durable, "write", real)
    assert images.sync({PATH: entry("2", 2)})
    updater = device(tmp_path / "d", as_files(images.metadata()), images.root_1)
    assert updater.get_targetinfo(PATH).custom["version"] == "2"


@pytest.mark.parametrize("name", ["targets.json", "snapshot.json", "timestamp.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"not json"])
def test_damaged_metadata_stops_the_hub_instead_of_starting_over(
    tmp_path, clock, images, name, damage
):
    (tmp_path / "images" / name).write_bytes(damage)
    with pytest.raises(DamagedError):
        ImageRepository.open(tmp_path / "images", clock)


def test_missing_targets_under_a_timestamp_are_damage(tmp_path, clock, images):
    (tmp_path / "images" / "targets.json").unlink()
    with pytest.raises(DamagedError, match=r"versions must not start again"):
        ImageRepository.open(tmp_path / "images", clock)


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_lost_signing_key_stops_the_hub_instead_of_being_made_anew(tmp_path, clock, images, role):
    (tmp_path / "images" / "keys" / f"{role}.pem").unlink()
    with pytest.raises(DamagedError, match="restore it from a backup"):
        ImageRepository.open(tmp_path / "images", clock)


def test_a_signing_key_that_the_root_does_not_name_is_refused(tmp_path, clock, images):
    keys = tmp_path / "images" / "keys"
    (keys / "targets.pem").write_bytes((keys / "snapshot.pem").read_bytes())
    with pytest.raises(DamagedError, match="is not the key that the root names"):
        ImageRepository.open(tmp_path / "images", clock)


def test_a_tampered_root_is_refused(tmp_path, clock, images):
    path = tmp_path / "images" / "1.root.json"
    path.write_bytes(path.read_bytes().replace(b'"threshold":1', b'"threshold":0', 1))
    with pytest.raises(DamagedError, match="cannot be trusted"):
        ImageRepository.open(tmp_path / "images", clock)


def test_each_role_is_signed_again_at_half_its_life_and_not_before(clock, images):
    before = versions(images)
    half = min(SNAPSHOT_LIFE_S, TIMESTAMP_LIFE_S) / 2
    clock.now = NOW + half - 1
    assert not images.refresh()
    clock.now = NOW + half
    assert images.refresh()
    assert versions(images) == before | {"snapshot": 2, "timestamp": 2}
    clock.now = NOW + TARGETS_LIFE_S / 2
    assert images.refresh()
    assert versions(images)["targets"] == 2


def test_a_device_walks_from_the_first_root_to_a_renewed_one(tmp_path, clock, images):
    clock.now = NOW + ROOT_LIFE_S / 2
    assert images.refresh()
    files = as_files(images.metadata())
    assert {"1.root.json", "2.root.json"} <= files.keys()
    updater = device(tmp_path / "d", files, images.root_1)
    updater.refresh()
    first, second = (Metadata[Root].from_bytes(files[f"{n}.root.json"]).signed for n in (1, 2))
    assert second.expires > first.expires


def test_an_expired_timestamp_is_refused_by_a_device(tmp_path):
    past = ImageRepository.open(tmp_path / "images", lambda: 1_600_000_000.0)
    updater = device(tmp_path / "d", as_files(past.metadata()), past.root_1)
    with pytest.raises(ExpiredMetadataError):
        updater.refresh()


def test_metadata_of_another_hub_is_refused_by_a_device(tmp_path, clock, images):
    foreign = ImageRepository.open(tmp_path / "foreign", clock)
    updater = device(tmp_path / "d", as_files(foreign.metadata()), images.root_1)
    with pytest.raises(RepositoryError):
        updater.refresh()


# --- director ---------------------------------------------------------------------------------


@pytest.fixture
def director(tmp_path: Path, clock: Clock) -> Director:
    return Director.open(tmp_path / "director", clock)


def order(attempt: int = 1) -> DirectorEntry:
    target = DirectorTarget("digits", "1", "onnx-int8", 1, "onnxruntime", attempt, window_rows=200)
    return DirectorEntry(PATH, 1234, "ab" * 32, target)


def assigned(folder: Path, director: Director, payload: bytes) -> tuple[Updater, Instructions]:
    message = codec.decode(payload, Assignment)
    files = {f"{n}.root.json": root for n, root in enumerate(message.roots, start=1)}
    files |= {
        "timestamp.json": message.timestamp,
        "snapshot.json": message.snapshot,
        "targets.json": message.targets,
    }
    updater = device(folder, files, director.root_1)
    updater.refresh()
    signed = json.loads(message.targets)["signed"][trust.INSTRUCTIONS_FIELD]
    return updater, trust.read_custom(Instructions, signed, "assignment")


def test_a_device_reads_its_full_assignment(tmp_path, director):
    signed = director.sign("cam-1", 5, 7, [order()], 3600.0)
    updater, instructions = assigned(tmp_path / "d", director, signed.payload)
    found = updater.get_targetinfo(PATH)
    assert isinstance(found, TargetFile)
    assert trust.read_custom(DirectorTarget, found.custom, PATH) == order().target
    assert instructions == Instructions("cam-1", 5)
    assert signed.expires_at == NOW + 3600.0


def test_an_assignment_for_one_device_is_refused_by_another(tmp_path, director):
    signed = director.sign("cam-1", 5, 7, [order()], 3600.0)
    _, instructions = assigned(tmp_path / "d", director, signed.payload)
    trust.check_instructions(instructions, "cam-1", 5)
    with pytest.raises(RefusedError) as refused:
        trust.check_instructions(instructions, "cam-2", 0)
    assert refused.value.reason == "wrong-device"


def test_an_empty_assignment_names_its_device_too(tmp_path, director):
    signed = director.sign("cam-1", 0, 1, [], 3600.0)
    _, instructions = assigned(tmp_path / "d", director, signed.payload)
    assert instructions == Instructions("cam-1", 0)


def test_an_older_assignment_is_refused_after_a_newer_one(tmp_path, director):
    old = director.sign("cam-1", 1, 1, [order()], 3600.0)
    new = director.sign("cam-1", 2, 2, [order(2)], 3600.0)
    assigned(tmp_path / "d", director, new.payload)
    with pytest.raises(RepositoryError):
        assigned(tmp_path / "d", director, old.payload)


def test_a_changed_assignment_is_refused(tmp_path, director):
    signed = director.sign("cam-1", 1, 1, [order()], 3600.0)
    message = codec.decode(signed.payload, Assignment)
    forged = Assignment(
        message.roots,
        message.timestamp,
        message.snapshot,
        message.targets.replace(b"cam-1", b"cam-2"),
    )
    with pytest.raises(RepositoryError):
        assigned(tmp_path / "d", director, codec.encode(forged))


def test_the_director_is_the_same_after_a_restart(tmp_path, clock, director):
    again = Director.open(tmp_path / "director", clock)
    assert again.root_1 == director.root_1
    signed = again.sign("cam-1", 1, 1, [order()], 3600.0)
    assigned(tmp_path / "d", director, signed.payload)


def test_a_renewed_director_root_travels_with_the_next_assignment(tmp_path, clock, director):
    clock.now = NOW + ROOT_LIFE_S / 2
    signed = director.sign("cam-1", 1, 1, [order()], 3600.0)
    assert len(codec.decode(signed.payload, Assignment).roots) == 2
    assigned(tmp_path / "d", director, signed.payload)


def test_all_roles_of_an_assignment_expire_together(director):
    message = codec.decode(director.sign("cam-1", 1, 3, [], 60.9).payload, Assignment)
    for payload, kind in ((message.timestamp, Timestamp), (message.snapshot, Snapshot)):
        signed = Metadata.from_bytes(payload).signed
        assert isinstance(signed, kind)
        assert (signed.version, signed.expires.timestamp()) == (3, NOW + 60)
