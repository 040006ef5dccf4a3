"""Image and director repositories, read by python-tuf's own client as a device reads them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_cloud.trust.repositories.images import ImageEntry, ImageRepository
from edgefleet_cloud.trust.repositories.layout import (
    RELEASES_LIFE_S,
    SNAPSHOT_LIFE_S,
    TIMESTAMP_LIFE_S,
)
from edgefleet_cloud.trust.repositories.testing import Founded, founded
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
def fleet(tmp_path: Path, clock: Clock) -> Founded:
    return founded(tmp_path, clock)


@pytest.fixture
def images(fleet: Founded) -> ImageRepository:
    return fleet.images


def versions(images: ImageRepository) -> dict[str, int]:
    return {
        role: json.loads(payload)["signed"]["version"]
        for role, payload in images.metadata().items()
    }


def test_a_device_finds_exactly_what_was_released(tmp_path, images):
    assert images.sync({PATH: entry()})
    updater = device(tmp_path / "d", images.files(), images.root_1)
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
    updater = device(tmp_path / "d", images.files(), images.root_1)
    assert updater.get_targetinfo(PATH) is None


def test_versions_go_on_after_a_restart(tmp_path, clock, images):
    images.sync({PATH: entry()})
    before = images.metadata()
    again = ImageRepository.open(tmp_path / "images", clock)
    assert again.metadata() == before
    assert again.sync({PATH: entry("2", 2)})
    assert versions(again) == {
        "root-1": 1,
        "targets": 1,
        "releases": 3,
        "snapshot": 3,
        "timestamp": 3,
    }


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_crash_at_any_file_leaves_a_repository_that_a_device_follows(
    tmp_path, clock, images, monkeypatch, written
):
    images.sync({PATH: entry()})
    follower = tmp_path / "follower"
    device(follower, images.files(), images.root_1).refresh()
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
    updater = device(follower, again.files(), images.root_1)
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
    updater = device(tmp_path / "d", images.files(), images.root_1)
    assert updater.get_targetinfo(PATH).custom["version"] == "2"


@pytest.mark.parametrize(
    "name", ["targets.json", "releases.json", "snapshot.json", "timestamp.json"]
)
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


@pytest.mark.parametrize("role", ["releases", "snapshot", "timestamp"])
def test_a_lost_signing_key_stops_the_hub_instead_of_being_made_anew(tmp_path, clock, images, role):
    (key,) = (tmp_path / "images" / "keys").glob(f"{role}-*.pem")
    key.unlink()
    with pytest.raises(DamagedError, match=f"key of image.{role} is not in .* restore it"):
        ImageRepository.open(tmp_path / "images", clock)


def test_a_key_file_that_is_not_the_half_beside_it_is_refused(tmp_path, clock, images):
    keys = tmp_path / "images" / "keys"
    (one,), (other,) = keys.glob("releases-*.pem"), keys.glob("snapshot-*.pem")
    one.write_bytes(other.read_bytes())
    with pytest.raises(DamagedError, match="is not the public half of"):
        ImageRepository.open(tmp_path / "images", clock)


def test_a_lost_timestamp_is_damage_once_anything_was_published_after_it(tmp_path, clock, images):
    images.sync({PATH: entry()})
    (tmp_path / "images" / "timestamp.json").unlink()
    with pytest.raises(DamagedError, match=r"timestamp.json cannot be read"):
        ImageRepository.open(tmp_path / "images", clock)


def test_a_hub_that_died_before_its_first_publication_begins_it_again(tmp_path, clock, images):
    (tmp_path / "images" / "timestamp.json").unlink()
    again = ImageRepository.open(tmp_path / "images", clock)
    assert versions(again)["timestamp"] == 1


def test_a_tampered_root_is_refused(tmp_path, clock, images):
    path = tmp_path / "images" / "1.root.json"
    path.write_bytes(path.read_bytes().replace(b'"threshold":2', b'"threshold":1', 1))
    with pytest.raises(DamagedError, match="cannot be trusted"):
        ImageRepository.open(tmp_path / "images", clock)


def test_each_online_role_is_signed_again_at_half_its_life_and_not_before(clock, images):
    before = versions(images)
    half = min(SNAPSHOT_LIFE_S, TIMESTAMP_LIFE_S) / 2
    clock.now = NOW + half - 1
    assert not images.refresh()
    clock.now = NOW + half
    assert images.refresh()
    assert versions(images) == before | {"snapshot": 2, "timestamp": 2}
    clock.now = NOW + RELEASES_LIFE_S / 2
    assert images.refresh()
    assert versions(images) == before | {"releases": 2, "snapshot": 3, "timestamp": 3}


def test_a_client_in_the_middle_of_a_publication_can_finish_it(images):
    before = images.files()
    images.sync({PATH: entry()})
    for name in before:
        if name != "timestamp.json":
            assert images.file(name) == before[name]
    assert images.file("timestamp.json") == images.metadata()["timestamp"]
    assert images.file("9.targets.json") is None


def test_what_is_published_says_whether_a_path_is_listed(images):
    assert not images.lists(PATH)
    images.sync({PATH: entry()})
    assert images.lists(PATH)


def test_an_expired_timestamp_is_refused_by_a_device(tmp_path):
    past = founded(tmp_path, lambda: 1_600_000_000.0).images
    updater = device(tmp_path / "d", past.files(), past.root_1)
    with pytest.raises(ExpiredMetadataError):
        updater.refresh()


def test_metadata_of_another_hub_is_refused_by_a_device(tmp_path, clock, images):
    foreign = founded(tmp_path / "foreign", clock).images
    updater = device(tmp_path / "d", foreign.files(), images.root_1)
    with pytest.raises(RepositoryError):
        updater.refresh()


# --- director ---------------------------------------------------------------------------------


@pytest.fixture
def director(fleet: Founded) -> Director:
    return fleet.director


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


def test_all_roles_of_an_assignment_expire_together(director):
    message = codec.decode(director.sign("cam-1", 1, 3, [], 60.9).payload, Assignment)
    for payload, kind in ((message.timestamp, Timestamp), (message.snapshot, Snapshot)):
        signed = Metadata.from_bytes(payload).signed
        assert isinstance(signed, kind)
        assert (signed.version, signed.expires.timestamp()) == (3, NOW + 60)
