"""Bundles: one variant of one version as a manifest and the blobs that it names.

In a folder, a bundle is `manifest.json` and one file for each blob, named by its digest: the very
bytes that are signed and sent.
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from edgefleet_converters.conversion import Compiled
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol import manifest
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.manifest import MAX_MANIFEST_BYTES, File, Lineage, Manifest

MANIFEST_NAME = "manifest.json"


class Bundle(Struct, frozen=True):
    """One variant of one version, ready to be signed.

    Attributes:
        manifest_bytes: the TUF target.
        blobs: digest of the blob as sent → its bytes, for every file of the manifest.
    """

    manifest: Manifest
    manifest_bytes: bytes
    blobs: dict[str, bytes]

    def unpack(self, role: str) -> bytes:
        """Return the file with `role`, as used.

        Raises:
            MalformedError: if there is none, or it differs from the manifest.
        """
        file = self.manifest.file(role)
        return manifest.unpack_file(file, self.blobs[file.transfer.digest])


def write_bundle(
    compiled: Compiled, reference: bytes, *, model: str, version: str, lineage: Lineage
) -> Bundle:
    """Put one verified variant into a bundle.

    Args:
        compiled: out of `ConversionResult.verified`.
        reference: `ConversionResult.reference`.
        model: name of the model.
        version: of the model, as registered.
        lineage: where the model came from.

    Raises:
        ValueError: if the variant was refused.
    """
    signature, needs, measured = compiled.signature, compiled.needs, compiled.measured
    if compiled.state != "verified" or signature is None or needs is None or measured is None:
        raise ValueError(f"variant {compiled.name} is not verified: {compiled.reason}")
    contents: list[tuple[Literal["model", "reference", "golden"], bytes]] = [
        ("model", compiled.model),
        ("reference", reference),
        ("golden", compiled.golden),
    ]
    files: list[File] = []
    blobs: dict[str, bytes] = {}
    for role, data in contents:
        file, blob = manifest.describe_file(role, data)
        files.append(file)
        blobs[file.transfer.digest] = blob
    made = Manifest(model, version, compiled.name, files, signature, needs, measured, lineage)
    return Bundle(made, manifest.encode(made), blobs)


def save(bundle: Bundle, folder: Path) -> None:
    """Write a bundle into a folder, which is made; the manifest last, so that it names whole files.

    Raises:
        BadInputError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for digest, blob in bundle.blobs.items():
            (folder / digest).write_bytes(blob)
        (folder / MANIFEST_NAME).write_bytes(bundle.manifest_bytes)
    except OSError as error:
        raise BadInputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def load(folder: Path) -> Bundle:
    """Read a bundle from a folder and check every digest.

    Raises:
        BadInputError: a file is missing or differs from the manifest.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        read = manifest.decode(data)
        blobs = {
            file.transfer.digest: (folder / file.transfer.digest).read_bytes()
            for file in read.files
        }
        bundle = Bundle(read, data, blobs)
        for file in read.files:
            bundle.unpack(file.role)
    except OSError as error:
        raise BadInputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    except ProtocolError as error:
        raise BadInputError(f"{folder}: no whole bundle: {error}") from error
    return bundle
