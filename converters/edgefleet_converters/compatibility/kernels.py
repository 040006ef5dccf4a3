"""ONNX Runtime's CPU kernels by release: which operator runs, in which version, on which types.

The table is built from the released wheels by `compatibility.build` and ships compressed. A kernel
matches a node as in ONNX Runtime's kernel registry:

1. The operator's version (the opset that last changed it) is the kernel's first version; or lies
   in its range, if the range has an end.
2. For each type that the kernel names, the first argument of the node that is there has one of the
   kernel's types.
3. A node with float16 that no kernel takes runs in float32, between casts that ONNX Runtime puts
   around it.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from msgspec import Struct

MAX_TABLE_BYTES = 16 << 20
# ONNX Runtime writes the end of an open range as the largest 32-bit integer.
OPEN = 2**31 - 1
SHIPPED = (
    Path(str(resources.files("edgefleet_converters.compatibility")))
    / "data"
    / ("onnxruntime-cpu.msgpack.zst")
)
STANDARD = ("", "ai.onnx")
FLOAT16, FLOAT32 = "tensor(float16)", "tensor(float)"


class Kernel(Struct, frozen=True, array_like=True):
    """One kernel.

    Attributes:
        first: version of the operator from which it applies.
        last: version up to which; `OPEN` for no end.
        types: name of a type in the operator's schema, or of an argument → types that it takes.
        releases: bit i is set if release i of the table has it.
    """

    domain: str
    operator: str
    first: int
    last: int
    types: dict[str, list[str]]
    releases: int = 0


class Schema(Struct, frozen=True, array_like=True):
    """An operator of a domain that the `onnx` package does not know.

    Attributes:
        inputs: name and type of each, in order.
        outputs: likewise.
        constraints: name of a type → what it may be.
    """

    domain: str
    operator: str
    since: int
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    constraints: dict[str, list[str]]
    releases: int = 0


class Release(Struct, frozen=True, array_like=True):
    """What a release of ONNX Runtime loads at most."""

    version: str
    opset: int
    ir: int
    ml: int


class Answer(Struct, frozen=True):
    """What one release said of itself."""

    release: Release
    kernels: list[Kernel]
    schemas: list[Schema]


class Table(Struct, frozen=True, array_like=True):
    """All releases: every distinct kernel and schema once."""

    releases: list[Release]
    kernels: list[Kernel]
    schemas: list[Schema]


def answer(said: dict[str, Any]) -> Answer:
    """Read what the probe printed."""
    limits = said["limits"]
    return Answer(
        Release(said["version"], limits["opset"], limits["ir"], limits["ml"]),
        [msgspec.convert(entry, Kernel) for entry in said["kernels"]],
        [msgspec.convert(entry, Schema) for entry in said["schemas"]],
    )


def merge(answers: list[Answer]) -> Table:
    """Put the answers of releases, oldest first, into one table."""
    kernels: dict[bytes, int] = {}
    schemas: dict[bytes, int] = {}
    for index, said in enumerate(answers):
        for items, found in ((said.kernels, kernels), (said.schemas, schemas)):
            for item in items:
                key = msgspec.msgpack.encode(item, order="deterministic")
                found[key] = found.get(key, 0) | 1 << index
    return Table(
        [said.release for said in answers],
        _marked(kernels, Kernel),
        _marked(schemas, Schema),
    )


def _marked(found: dict[bytes, int], kind: type[Any]) -> list[Any]:
    decoder = msgspec.msgpack.Decoder(kind)
    return [
        msgspec.structs.replace(decoder.decode(key), releases=mask)
        for key, mask in sorted(found.items())
    ]


def encode(table: Table) -> bytes:
    """Return a table as it is shipped."""
    packed = msgspec.msgpack.encode(table, order="deterministic")
    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(packed)


def decode(data: bytes) -> Table:
    """Read a table."""
    packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_TABLE_BYTES)
    return msgspec.msgpack.decode(packed, type=Table)


class Kernels:
    """The table, by operator."""

    def __init__(self, table: Table) -> None:
        self.releases = table.releases
        self._kernels: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in table.kernels:
            self._kernels.setdefault((kernel.domain, kernel.operator), []).append(kernel)
        self._schemas: dict[tuple[str, str], list[Schema]] = {}
        for schema in table.schemas:
            self._schemas.setdefault((schema.domain, schema.operator), []).append(schema)

    @property
    def versions(self) -> list[str]:
        """Releases of the table, oldest first."""
        return [release.version for release in self.releases]

    def domains(self, index: int) -> set[str]:
        """Return the domains of which a release has any kernel."""
        return {
            domain
            for (domain, _), held in self._kernels.items()
            if any(kernel.releases >> index & 1 for kernel in held)
        }

    def schema(self, domain: str, operator: str) -> Schema | None:
        """Return the newest schema of an operator that only ONNX Runtime knows."""
        held = self._schemas.get((domain, operator))
        return held[-1] if held else None

    def of(self, index: int, domain: str, operator: str) -> list[Kernel]:
        """Return the kernels of an operator in a release."""
        domain = "" if domain in STANDARD else domain
        return [
            kernel
            for kernel in self._kernels.get((domain, operator), [])
            if kernel.releases >> index & 1
        ]


def covers(kernel: Kernel, since: int) -> bool:
    """Tell whether a kernel applies to an operator that was last changed at opset `since`."""
    if kernel.first == since:
        return True
    return kernel.last != OPEN and kernel.first <= since <= kernel.last


@cache
def shipped() -> Kernels:
    """Return the table that ships."""
    return Kernels(decode(SHIPPED.read_bytes()))
