"""A file that lies somewhere, as what can be traced: its digest, and manifests found beside it.

| what | manifests beside it |
|---|---|
| a bundle's folder | its `manifest.json`; every blob is there and has its digest |
| a manifest | itself |
| another file: a model, a blob, a file in a device's store | files of its folder that name it |
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgefleet_cloud.errors import InvalidError
from edgefleet_protocol import manifest as manifests
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.manifest import MAX_MANIFEST_BYTES, Manifest

MANIFEST = "manifest.json"
# A device's store holds a few dozen files; elsewhere nobody wants all of a folder read.
MAX_NEIGHBOURS = 500
_CHUNK_BYTES = 1 << 20


class RefusedArtifactError(Exception):
    """What was found does not hold: a signature, a digest, or a statement of where it came from."""


@dataclass(frozen=True)
class Artifact:
    """Something to be traced.

    Attributes:
        name: for people.
        digest: of the file; of the manifest, for a bundle's folder.
        manifests: bytes of the manifests that name it, as far as they lie beside it.
    """

    name: str
    digest: str
    manifests: list[bytes]


def read(path: Path) -> Artifact:
    """Return what lies at `path`.

    Raises:
        InvalidError: if it cannot be read.
        RefusedArtifactError: if a bundle's folder is not whole.
    """
    try:
        if path.is_dir():
            return _bundle(path)
        digest = _digest(path)
        return Artifact(path.name, digest, _beside(path, digest))
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from error


def parse(data: bytes) -> Manifest | None:
    """Return the manifest that the bytes hold, None if they hold none."""
    try:
        return manifests.decode(data)
    except ProtocolError:
        return None


def names(data: bytes, digest: str) -> bool:
    """Tell whether the bytes are a manifest that names a file, as used or as sent, or are it."""
    held = parse(data)
    if held is None:
        return False
    digests = {item for file in held.files for item in (file.digest, file.transfer.digest)}
    return digest in digests or hashlib.sha256(data).hexdigest() == digest


def _bundle(folder: Path) -> Artifact:
    path = folder / MANIFEST
    data = path.read_bytes()
    manifest = parse(data)
    if manifest is None:
        raise InvalidError(f"{path} is no manifest of a bundle")
    for file in manifest.files:
        blob = folder / file.transfer.digest
        if not blob.is_file():
            raise RefusedArtifactError(f"{folder} lacks the {file.role} file {blob.name}")
        if _digest(blob) != blob.name:
            raise RefusedArtifactError(f"{blob}: the {file.role} file has another digest")
    return Artifact(folder.name, hashlib.sha256(data).hexdigest(), [data])


def _beside(path: Path, digest: str) -> list[bytes]:
    """Return the file itself, or those of its folder, where they are manifests that name it."""
    neighbours = [path, path.parent / MANIFEST, *sorted(path.parent.iterdir())[:MAX_NEIGHBOURS]]
    found: dict[bytes, None] = {}
    for neighbour in neighbours:
        if neighbour.is_file() and neighbour.stat().st_size <= MAX_MANIFEST_BYTES:
            data = neighbour.read_bytes()
            if data.startswith(b"{") and names(data, digest):
                found[data] = None
                if neighbour == path:
                    break
    return list(found)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
