"""Board profiles: what a processor can do, and which runtimes there are for it.

Those that ship are TOML files in `data/boards`; people add their own in the same form. Every
figure names where it is from (`[sources]`); unknown names and impossible figures are refused.
"""

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_converters.compatibility.releases import RUNTIMES
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol.profiles import MODEL_MEMORY_SHARE

# A profile is a page of text.
MAX_PROFILE_BYTES = 64 * 1024
FEATURES = ("neon", "fp16", "dotprod", "i8mm", "sve", "sse4.2", "avx2", "avx512-vnni")
_DATA = resources.files("edgefleet_converters.compatibility") / "data" / "boards"


class BoardProfile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kind of board.

    Attributes:
        name: as in manifests and in `agent.toml`.
        architecture: of the system on it, as `platform.machine()` names it.
        cpu: core, as its maker calls it.
        isa: architecture version of the core.
        features: instructions that matter to inference, out of `FEATURES`.
        qemu_cpu: model of qemu's user mode that has the same instructions; empty for none.
        memory_bytes: of the smallest model sold.
        wheels: runtimes of which the package index has wheels for this architecture.
        distribution_packages: runtimes that a Linux distribution has instead, `name version`.
        sources: figure → where it is from (address or title of a document).
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    title: str
    architecture: Annotated[str, Meta(pattern=r"^(aarch64|armv7l|armv6l|x86_64|riscv64)$")]
    cpu: str
    isa: str
    cores: Annotated[int, Meta(ge=1, le=1024)]
    clock_mhz: Annotated[int, Meta(ge=1, le=10_000)]
    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 44)]
    features: list[str] = field(default_factory=list)
    qemu_cpu: str = ""
    wheels: list[str] = field(default_factory=list)
    distribution_packages: list[str] = field(default_factory=list)
    sources: dict[str, str]

    @property
    def model_memory_bytes(self) -> int:
        """What a model may take: the share that the agent grants it."""
        return int(self.memory_bytes * MODEL_MEMORY_SHARE)

    def offers(self, runtime: str) -> bool:
        """Tell whether a runtime exists for this board, in any version."""
        packaged = [package.partition(" ")[0] for package in self.distribution_packages]
        return runtime in self.wheels or runtime in packaged

    def __post_init__(self) -> None:
        unknown = sorted(set(self.features) - set(FEATURES))
        if unknown:
            raise ValueError(f"features {unknown} are not known; there are: {', '.join(FEATURES)}")
        strange = sorted(set(self.wheels) - set(RUNTIMES))
        if strange:
            raise ValueError(f"wheels {strange} are no runtimes; there are: {', '.join(RUNTIMES)}")
        missing = [
            name
            for name in ("cpu", "cores", "clock_mhz", "memory_bytes", "wheels")
            if name not in self.sources
        ]
        if missing:
            raise ValueError(f"[sources] names none for: {', '.join(missing)}")


@cache
def all_boards() -> dict[str, BoardProfile]:
    """Return the profiles that ship, by name, in the order of their names."""
    found = [
        _decode(entry.name, entry.read_bytes())
        for entry in _DATA.iterdir()
        if entry.name.endswith(".toml")
    ]
    return {board.name: board for board in sorted(found, key=lambda board: board.name)}


def find(name: str) -> BoardProfile:
    """Return a profile by the name of a board, or by the path of a person's own file.

    Raises:
        BadInputError: if there is no such board, or the file is no profile.
    """
    if name.endswith(".toml"):
        return read(Path(name))
    known = all_boards()
    if name not in known:
        raise BadInputError(
            f"no board is called {name!r}; there are: {', '.join(known)}; or name a file of your"
            " own that ends in .toml"
        )
    return known[name]


def read(path: Path) -> BoardProfile:
    """Read a person's own profile.

    Raises:
        BadInputError: if it cannot be read or is no profile.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_PROFILE_BYTES:
        raise BadInputError(
            f"{path}: is larger than {MAX_PROFILE_BYTES} bytes; no board profile is"
        )
    return _decode(str(path), data)


def _decode(where: str, data: bytes) -> BoardProfile:
    try:
        return msgspec.convert(tomllib.loads(data.decode()), BoardProfile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{where}: is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise BadInputError(f"{where}: is no board profile: {error}") from error
