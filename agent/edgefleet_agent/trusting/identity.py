"""The identity of an enrolled device: keys, certificates and trust anchors on disk.

`identity/hub.json` is written last, so a store that has it has all the others too.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgefleet_agent import files
from edgefleet_agent.errors import EnrolmentError

FOLDER = "identity"
DIRECTOR_ROOT = "director-root.json"


class Hub(Struct, frozen=True):
    """Where the hub is, and under which name it knows this device."""

    device: str
    mqtt_host: str
    mqtt_port: Annotated[int, Meta(ge=1, le=65_535)]
    api_url: str


class Identity(Struct, frozen=True):
    """Paths of the identity files, and what they say.

    Attributes:
        image_root: version 1 of the image repository's root role, as received at enrolment.
        director_root: likewise of the director's.
    """

    hub: Hub
    key: Path
    certificate: Path
    ca: Path
    image_root: bytes
    director_root: bytes


def is_enrolled(store: Path) -> bool:
    """Tell whether the store holds a whole identity."""
    return (store / FOLDER / "hub.json").is_file()


def load(store: Path) -> Identity:
    """Read the identity of an enrolled device.

    Raises:
        EnrolmentError: if the device is not enrolled, or a file is missing or damaged.
    """
    folder = store / FOLDER
    if not is_enrolled(store):
        raise EnrolmentError(
            f"this device is not enrolled (no {folder / 'hub.json'});"
            " run: edgefleet-agent enroll --hub URL --token CLAIM"
        )
    try:
        hub = msgspec.json.decode((folder / "hub.json").read_bytes(), type=Hub)
        for name in ("device.key", "device.pem", "ca.pem"):
            (folder / name).read_bytes()
        return Identity(
            hub,
            folder / "device.key",
            folder / "device.pem",
            folder / "ca.pem",
            (folder / "image-root.json").read_bytes(),
            (folder / DIRECTOR_ROOT).read_bytes(),
        )
    except (OSError, msgspec.DecodeError) as error:
        raise EnrolmentError(
            f"the identity in {folder} is damaged ({error}); enrol again with --force"
        ) from error


def save(
    store: Path,
    hub: Hub,
    *,
    key: bytes,
    certificate: bytes,
    ca: bytes,
    image_root: bytes,
    director_root: bytes,
) -> None:
    """Write a new identity, each file atomically; the key is readable by its owner only."""
    folder = store / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # An older identity stops counting before its first file changes.
    (folder / "hub.json").unlink(missing_ok=True)
    files.sync_folder(folder)
    files.replace(folder / "device.key", key, mode=0o600)
    files.replace(folder / "device.pem", certificate)
    files.replace(folder / "ca.pem", ca)
    files.replace(folder / "image-root.json", image_root)
    files.replace(folder / DIRECTOR_ROOT, director_root)
    files.replace(folder / "hub.json", msgspec.json.format(msgspec.json.encode(hub)))
