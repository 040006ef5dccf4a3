"""A folder that carries metadata and drafts to a machine without the hub, and signatures back.

    metadata/   the image repository as a TUF client reads it: N.root.json … timestamp.json
    director/   N.root.json of the directors
    drafts/     NAME.json: what people are to sign

The same folder works as a mirror of the image repository. It is not trusted: what is in force is
found by walking from root 1, whose digest the person compares with the one on record.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories import drafts, layout, roots
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.drafts import File, Held
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_protocol.identifiers import digest_of

METADATA, DIRECTOR, DRAFTS = "metadata", "director", "drafts"
_NAME = re.compile(r"(metadata|director|drafts)/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json")
_MAX_FILES = 2000


@dataclass(frozen=True)
class Desk:
    """What lies before a person who signs.

    Attributes:
        root_digests: repository → SHA-256 of its root 1, to compare with the one on record.
    """

    held: Held
    drafts: dict[str, File]
    root_digests: dict[str, str]


def export(images: ImageRepository, director: Director) -> dict[str, bytes]:
    """Return the files of the folder: relative path → content."""
    files = {f"{METADATA}/{name}": data for name, data in images.files().items()}
    for version in range(1, director.root_version + 1):
        payload = director.root(version)
        assert payload is not None  # every version is kept
        files[f"{DIRECTOR}/{version}.root.json"] = payload
    present = director.drafts() | images.drafts()
    return files | draft_files(present)


def draft_files(present: Mapping[str, File]) -> dict[str, bytes]:
    """Return drafts as files of the folder."""
    return {f"{DRAFTS}/{name}.json": drafts.payload_of(draft) for name, draft in present.items()}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the folder; drafts that lie in it from before and are none any more are removed.

    Raises:
        InvalidError: if a name would leave the folder.
    """
    for name in files:
        if not _NAME.fullmatch(name):
            raise InvalidError(f"{name!r} is no file of an export")
    for path in (folder / DRAFTS).glob("*.json"):
        if f"{DRAFTS}/{path.name}" not in files:
            path.unlink()
    for name, data in files.items():
        durable.write(folder / name, data, mode=durable.PUBLIC)


def read(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder.

    Raises:
        InvalidError: if it is none, or cannot be read.
    """
    paths = sorted(
        path for kind in (METADATA, DIRECTOR, DRAFTS) for path in folder.glob(f"{kind}/*")
    )
    if not paths or len(paths) > _MAX_FILES:
        raise InvalidError(
            f"{folder} is no export: expected the folders {METADATA}, {DIRECTOR} and {DRAFTS}, as"
            " `edgefleet trust export` writes them"
        )
    try:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    except OSError as error:
        raise InvalidError(f"{folder} cannot be read: {error}") from error


def lay_out(files: Mapping[str, bytes]) -> Desk:
    """Verify an export, and return what is in force and what is to be signed.

    Raises:
        DamagedError: if a root, or what a root or delegation names, does not verify.
    """
    try:
        image, director = _chain(files, METADATA), _chain(files, DIRECTOR)
        top = _newest(files, Targets.type)
        owners = {role: _newest(files, role) for role in drafts.owner_roles(top)}
        held = Held(
            image_root=roots.verified(image) if image else None,
            director_root=roots.verified(director) if director else None,
            targets=top,
            owners={role: file for role, file in owners.items() if file is not None},
            released=_newest(files, layout.RELEASES),
        )
        present: dict[str, File] = {
            Path(name).stem: drafts.parse(data)
            for name, data in files.items()
            if name.startswith(f"{DRAFTS}/")
        }
    except (RepositoryError, ValueError) as error:
        raise DamagedError(f"the export cannot be trusted: {error}") from error
    _check(held)
    digests = {
        name: digest_of(chain[0])
        for name, chain in ((layout.IMAGE, image), (layout.DIRECTOR, director))
        if chain
    }
    return Desk(held, present, digests)


def _check(held: Held) -> None:
    """Refuse files that the ones above them do not vouch for."""
    pairs: list[tuple[File, str, File]] = []
    if held.image_root is not None and held.targets is not None:
        pairs.append((held.image_root, Targets.type, held.targets))
        pairs += [(held.targets, role, file) for role, file in held.owners.items()]
    for above, role, file in pairs:
        if not drafts.vouches(above, role, file):
            raise DamagedError(f"the export cannot be trusted: {role} lacks signatures")


def _chain(files: Mapping[str, bytes], kind: str) -> list[bytes]:
    chain: list[bytes] = []
    while (data := files.get(f"{kind}/{len(chain) + 1}.root.json")) is not None:
        chain.append(data)
    return chain


def _newest(files: Mapping[str, bytes], role: str) -> Metadata[Targets] | None:
    form = re.compile(rf"{METADATA}/(\d+)\.{re.escape(role)}\.json")
    versions = [(int(match[1]), name) for name in files if (match := form.fullmatch(name))]
    return Metadata.from_bytes(files[max(versions)[1]]) if versions else None
