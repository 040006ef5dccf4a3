"""The trust rules, each with the attack that it stops."""

import pytest
from msgspec import structs

from edgefleet_protocol import trust
from edgefleet_protocol.errors import MalformedError, RefusedError

DIRECTOR = trust.DirectorTarget("digits", "2", "onnx-fp32", 4, "onnxruntime", attempt=9)
IMAGE = trust.ImageTarget("digits", "2", "onnx-fp32", 4, "onnxruntime")
HASHES = {"sha256": "a" * 64}


def check(**changes: object) -> None:
    values: dict[str, object] = {
        "path": "digits/r4/onnx-fp32.json",
        "director": DIRECTOR,
        "director_length": 10,
        "director_hashes": HASHES,
        "image": IMAGE,
        "image_length": 10,
        "image_hashes": HASHES,
        "board": "rpi4",
        "release_floor": 4,
    }
    trust.cross_check(**{**values, **changes})  # type: ignore[arg-type]  # built by name


def test_repositories_that_agree_are_accepted() -> None:
    check()
    check(release_floor=3)
    check(image=structs.replace(IMAGE, boards=["rpi4"]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_length": 11}, "mix-and-match"),
        ({"image_hashes": {"sha256": "b" * 64}}, "mix-and-match"),
        ({"image_hashes": {}, "director_hashes": {}}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, model="faces")}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, version="3")}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, variant="onnx-int8")}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, release=5)}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, runtime="litert")}, "mix-and-match"),
        ({"image": structs.replace(IMAGE, boards=["rpi5"])}, "incompatible-board"),
        ({"release_floor": 5}, "rollback"),
    ],
)
def test_repositories_that_differ_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(RefusedError) as refused:
        check(**changes)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "digest", ["", "a" * 63, "A" * 64, "../../../../etc/passwd", "a" * 64 + "\n"]
)
def test_a_hash_that_could_name_another_file_than_its_own_is_refused(digest: str) -> None:
    hashes = {"sha256": digest}
    with pytest.raises(MalformedError, match="no digest"):
        check(director_hashes=hashes, image_hashes=hashes)


def test_an_assignment_for_another_device_is_refused() -> None:
    with pytest.raises(RefusedError, match="is for 'cam-2'; this is 'cam-1'"):
        trust.check_instructions(trust.Instructions("cam-2", 1), "cam-1", 0)


def test_an_older_assignment_is_refused_and_the_same_one_is_not() -> None:
    trust.check_instructions(trust.Instructions("cam-1", 5), "cam-1", 5)
    with pytest.raises(RefusedError) as refused:
        trust.check_instructions(trust.Instructions("cam-1", 4), "cam-1", 5)
    assert refused.value.reason == "rollback"


def test_signed_fields_are_read_strictly() -> None:
    custom = {"model": "m", "version": "1", "variant": "v", "release": 1, "runtime": "litert"}
    assert trust.read_custom(trust.ImageTarget, custom, "x").release == 1
    for wrong in (None, {}, {**custom, "release": -1}, {**custom, "runtime": "tensorrt"}):
        with pytest.raises(MalformedError, match="signed fields cannot be read"):
            trust.read_custom(trust.ImageTarget, wrong, "x")


def test_a_target_path_cannot_leave_its_folder() -> None:
    assert trust.target_path("digits", 4, "onnx-fp32") == "digits/r4/onnx-fp32.json"
    with pytest.raises(MalformedError):
        trust.target_path("../root", 1, "x")
