"""SavedModels: folders, zip and tar archives of them, as one archive that is always the same.

1. An archive is foreign: what it says it holds is counted while it is unpacked, never believed.
2. Only plain files below the folder that holds `saved_model.pb` are taken; links, devices and
   names that lead out of the folder are refused.
3. Equal folders give equal bytes: sorted names, no times, nothing compressed.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from edgefleet_converters.errors import BadInputError

# TensorFlow Lite and ONNX cannot hold more in one file.
MAX_UNPACKED_BYTES = 2 << 30
MAX_MEMBERS = 10_000
_GRAPH = "saved_model.pb"
# The oldest time that a zip archive can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK_BYTES = 1 << 20


def pack(path: str | Path) -> bytes:
    """Return a SavedModel as a zip archive of its folder.

    Args:
        path: the folder, or a zip or tar archive with the folder's files at any one depth.

    Raises:
        BadInputError: no SavedModel, more of one than `MAX_UNPACKED_BYTES`, or an archive that is
            damaged or reaches out of its folder.
    """
    source = Path(path)
    try:
        if source.is_dir():
            files = _collect(source, _of_folder(source))
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as zipped:
                files = _collect(source, _of_zip(source, zipped))
        else:
            with tarfile.open(source) as tarred:
                files = _collect(source, _of_tar(source, tarred))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise BadInputError(f"{source}: damaged, or no archive: {error}") from error
    except (OSError, NotImplementedError, RuntimeError) as error:  # zipfile: encrypted, unknown
        raise BadInputError(f"{source}: cannot be read: {error}") from error
    return _zipped(_below_graph(source, files))


def unpack(data: bytes, folder: str | Path) -> None:
    """Write the files of an archive made by `pack` into a folder."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        archive.extractall(folder)  # noqa: S202  # packed here, so every name stays inside


_Members = Iterator[tuple[str, IO[bytes]]]


def _of_folder(folder: Path) -> _Members:
    for entry in sorted(folder.rglob("*")):
        if entry.is_symlink():
            raise BadInputError(f"{folder}: {entry.name!r} is a link; expected plain files")
        if entry.is_file():
            with entry.open("rb") as stream:
                yield entry.relative_to(folder).as_posix(), stream


def _of_zip(source: Path, archive: zipfile.ZipFile) -> _Members:
    for info in archive.infolist():
        if info.is_dir():
            continue
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise BadInputError(f"{source}: {info.filename!r} is a link; expected plain files")
        with archive.open(info) as stream:
            yield info.filename, stream


def _of_tar(source: Path, archive: tarfile.TarFile) -> _Members:
    for info in archive:
        if info.isdir():
            continue
        stream = archive.extractfile(info) if info.isfile() else None
        if stream is None:
            raise BadInputError(
                f"{source}: {info.name!r} is a link or device; expected plain files"
            )
        with stream:
            yield info.name, stream


def _collect(source: Path, members: _Members) -> dict[PurePosixPath, bytes]:
    """Read all members, counting what comes out."""
    files: dict[PurePosixPath, bytes] = {}
    left = MAX_UNPACKED_BYTES
    for name, stream in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise BadInputError(f"{source}: the name {name!r} leads out of the archive")
        if len(files) == MAX_MEMBERS:
            raise BadInputError(f"{source}: holds more than {MAX_MEMBERS} files")
        chunks = []
        while chunk := stream.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise BadInputError(
                    f"{source}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB"
                )
            chunks.append(chunk)
        files[path] = b"".join(chunks)
    return files


def _below_graph(source: Path, files: dict[PurePosixPath, bytes]) -> dict[PurePosixPath, bytes]:
    """Return the files of the one folder that holds the graph, by their names in it."""
    roots = [path.parent for path in files if path.name == _GRAPH]
    if len(roots) != 1:
        raise BadInputError(
            f"{source}: holds {len(roots)} files {_GRAPH}; expected the one of a SavedModel"
        )
    root = roots[0]
    return {
        path.relative_to(root): data for path, data in files.items() if path.is_relative_to(root)
    }


def _zipped(files: dict[PurePosixPath, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(str(path), _EPOCH), files[path])
    return packed.getvalue()
