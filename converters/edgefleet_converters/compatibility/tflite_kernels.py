"""TFLite's built-in operators by release: which versions of each a runtime registers.

The table is built from the released wheels by `compatibility.build`: an interpreter refuses a file
at once that names an operator version which it has not, so each is asked about one by one.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from msgspec import Struct

from edgefleet_converters.compatibility.releases import RuntimeName

MAX_TABLE_BYTES = 4 << 20
SHIPPED = (
    Path(str(resources.files("edgefleet_converters.compatibility"))) / "data" / "tflite.msgpack.zst"
)


class TfliteRelease(Struct, frozen=True, array_like=True):
    """What a release has.

    Attributes:
        versions: number of a built-in operator → versions of it.
        custom: names of custom operators that it brings along.
        wrong: kinds of layers (`probe_sums`) that it does not compute, whatever it says.
    """

    runtime: RuntimeName
    version: str
    versions: dict[int, list[int]]
    custom: list[str]
    wrong: list[str]


def release(runtime: RuntimeName, version: str, said: dict[str, Any]) -> TfliteRelease:
    """Read what the probe printed."""
    versions = {int(code): sorted(held) for code, held in said["versions"].items() if held}
    return TfliteRelease(
        runtime,
        version,
        dict(sorted(versions.items())),
        sorted(said["custom"]),
        sorted(said["wrong"]),
    )


def encode(found: list[TfliteRelease]) -> bytes:
    """Return a table as it is shipped."""
    packed = msgspec.msgpack.encode(found)  # `release` sorted it
    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(packed)


def decode(data: bytes) -> list[TfliteRelease]:
    """Read a table."""
    packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_TABLE_BYTES)
    return msgspec.msgpack.decode(packed, type=list[TfliteRelease])


@cache
def shipped() -> dict[RuntimeName, list[TfliteRelease]]:
    """Return the table that ships: runtime → releases, oldest first."""
    found: dict[RuntimeName, list[TfliteRelease]] = {}
    for held in decode(SHIPPED.read_bytes()):
        found.setdefault(held.runtime, []).append(held)
    return found
