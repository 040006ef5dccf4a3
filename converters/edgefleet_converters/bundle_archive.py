"""Bundles on their way to a hub: many folders in one plain tar archive.

Packing is deterministic. Unpacking believes nothing: only plain files named as those of a bundle
are read, and of bounded number and size; whoever loads the bundles then checks every digest.
"""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from edgefleet_converters import bundles
from edgefleet_converters.errors import BadInputError

MAX_BUNDLES = 64
MAX_BYTES = 4 << 30
_MEMBER = re.compile(rf"(\d{{1,3}})/({re.escape(bundles.MANIFEST_NAME)}|[0-9a-f]{{64}})")


def pack(folders: Sequence[Path], target: BinaryIO) -> None:
    """Write bundles into an archive.

    Args:
        folders: of bundles, as `bundles.save` writes them.
        target: is written to from where it stands.

    Raises:
        BadInputError: there are none or too many, or one is no whole bundle.
    """
    if not 0 < len(folders) <= MAX_BUNDLES:
        raise BadInputError(f"{len(folders)} bundles; expected 1 to {MAX_BUNDLES}")
    with tarfile.open(fileobj=target, mode="w") as archive:
        for number, folder in enumerate(folders):
            bundle = bundles.load(folder)
            for name in (bundles.MANIFEST_NAME, *sorted(bundle.blobs)):
                member = archive.gettarinfo(folder / name, f"{number}/{name}")
                member.mtime = member.uid = member.gid = 0
                member.uname = member.gname = ""
                with (folder / name).open("rb") as file:
                    archive.addfile(member, file)


def unpack(source: Path, folder: Path) -> list[Path]:
    """Write the bundles of an archive below `folder`; return their folders in order.

    Raises:
        BadInputError: it is no archive of bundles, or too large.
    """
    found: set[int] = set()
    total = 0
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                stream = archive.extractfile(member) if match and member.isreg() else None
                if match is None or stream is None:
                    raise BadInputError(
                        f"the archive holds {member.name[:200]!r}; expected N/manifest.json and"
                        " N/DIGEST"
                    )
                number = int(match[1])
                found.add(number)
                total += member.size
                if total > MAX_BYTES or len(found) > MAX_BUNDLES:
                    raise BadInputError(
                        f"the archive holds more than {MAX_BYTES} bytes or {MAX_BUNDLES} bundles"
                    )
                place = folder / str(number)
                place.mkdir(exist_ok=True)
                with (place / match[2]).open("wb") as file:
                    while chunk := stream.read(1 << 20):
                        file.write(chunk)
    except (tarfile.TarError, OSError) as error:
        raise BadInputError(f"no archive of bundles: {error}") from error
    if not found:
        raise BadInputError("the archive holds no bundle")
    return [folder / str(number) for number in sorted(found)]
