"""How an input is written, and what may be changed in it: structure-aware mutation by Hypothesis.

A *form* turns bytes into plain values and back. `inputs` draws a seed, changes some of its values
in place (by what stood in the way of decoders before: extreme numbers, texts that databases and
terminals do not like, wrong types, deep nesting), writes it again, and at times damages the bytes.
Every choice is Hypothesis's, so that a failing input is shrunk.
"""

import base64
import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import zstandard
from hypothesis import strategies as st

Path = tuple[Any, ...]
# A little more than the longest message; what is longer is refused by its length.
MAX_INPUT_BYTES = 600_000


@dataclass(frozen=True)
class Form:
    """A way to write values.

    Attributes:
        read: bytes → values; raises what it likes if it cannot.
        write: the way back.
    """

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


_NUMBERS: list[Any] = [
    0, 1, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63,
    2**64 - 1, -(2**31), -(2**63), 0.5, -0.0, 5e-324, 1e308, math.inf, -math.inf, math.nan,
]  # fmt: skip
_TEXTS = [
    "", "\x00", "a\x00b", " ", ".", "..", "../../../etc/passwd", "/etc/passwd", "a/b", "a\\b",
    "%s%n", "{0.__class__}", "'; DROP TABLE device; --", "=1+1", "<script>", "\u202e", "\ufeff",
    "²", "١", "é" * 64, "☃" * 200, "x" * 65, "x" * 2001, "0" * 64, "f" * 64, "G" * 64, "1" * 5000,
    "nan", "Infinity", "null", "+", "#", "$SYS", "\n", "\r\n", "\x1b[2J",
]  # fmt: skip
_OTHERS: list[Any] = [
    None, True, False, [], {}, b"", b"\x00", b"\xff" * 64, [None] * 5000, [[]] * 300, [0] * 70,
    {"": 0}, {"a": {"a": {"a": None}}}, _deep(200), _deep(5000),
]  # fmt: skip
# Lengths that announce more than is there, and nesting, in the notations of MessagePack and JSON.
_TOKENS = [
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff", b"\xc9\x00\x00\xff\xff\x01", b"\xd6\xff\x00\x00\x00\x00", b"\xc1",
    b"\x91" * 50_000, b"[" * 50_000, b'{"a":' * 20_000, b"\x80", b"\xff\xfe",
    b"\x28\xb5\x2f\xfd\xa4\xff\xff\xff\xff", b"\x1f\x8b\x08\x00",
]  # fmt: skip
_WAYS = ["like", "like", "like", "like", "set", "set", "json", "drop", "add", "repeat", "move"]
_DROP = object()
# What may stand where something of another type is expected.
_UNLIKE: list[Any] = [None, -1, 0.5, "x", b"x", [], {}]
# Only JSON can write these.
_JSON_ONLY: list[Any] = [10**400, -(10**400), "\ud800", "a\udfffb", {"\ud800": 1}]


def _simple() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(_NUMBERS),
        st.sampled_from(_TEXTS),
        st.sampled_from(_OTHERS),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=32),
    )


@st.composite
def inputs(draw: st.DrawFn, seeds: Sequence[bytes], form: Form | None) -> bytes:
    """Draw one input.

    Args:
        draw: Hypothesis's.
        seeds: inputs that are known.
        form: of the seeds; None for bytes without structure.
    """
    data = draw(st.sampled_from(seeds))
    if form is not None and draw(st.integers(0, 7)):
        values = form.read(data)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            changed = draw(_changed(values))
            values = changed if _weight(changed) <= 4 * MAX_INPUT_BYTES else values
        # What the form cannot write, no peer can send in it.
        with contextlib.suppress(ValueError, OverflowError, RecursionError, TypeError):
            written = form.write(values)
            data = written if len(written) <= MAX_INPUT_BYTES else data
        if draw(st.integers(0, 7)):
            return data
    return draw(_damaged(data, seeds))


@st.composite
def _changed(draw: st.DrawFn, values: Any) -> Any:
    paths = list(_paths(values))
    path = paths[draw(st.integers(0, len(paths) - 1))]
    what = draw(st.sampled_from(_WAYS))
    held = _at(values, path)
    if what == "drop":
        return _without(values, path)
    if what == "add":
        key = draw(st.sampled_from(_TEXTS) | st.text(max_size=4))
        new = draw(_simple())
        if isinstance(held, dict):
            return _with(values, path, {**held, key: new})
        if isinstance(held, list):
            return _with(values, path, [*held, new])
        return _with(values, path, {key: held})
    if what == "repeat":
        times = draw(st.sampled_from([2, 65, 1025, 5000]))
        many = isinstance(held, list | str | bytes)
        if _weight(held) * times > MAX_INPUT_BYTES:
            times = 2
        return _with(values, path, held * times if many else [held] * times)
    if what == "move":
        other = paths[draw(st.integers(0, len(paths) - 1))]
        return _with(values, path, _at(values, other))
    if what == "like":
        return _with(values, path, draw(st.sampled_from(_like(held))))
    chosen = st.sampled_from(_JSON_ONLY) if what == "json" else _simple()
    return _with(values, path, draw(chosen))


def _like(held: Any) -> list[Any]:
    """Return other values of the same type: they get past the check of types."""
    if isinstance(held, bool):
        return [not held]
    if isinstance(held, int):
        return [number for number in _NUMBERS if isinstance(number, int)]
    if isinstance(held, float):
        return [float(number) for number in _NUMBERS]
    if isinstance(held, str):
        return [*_TEXTS, held.upper(), held + held[-1:]]
    if isinstance(held, bytes):
        return [b"", held * 2, held[:-1], bytes(len(held)), b"\xff" * len(held), held[::-1]]
    if isinstance(held, list):
        return [[], held[:1], held[1:], held + held, held[::-1]]
    return [{}]


def sweep(data: bytes, form: Form, random: Random) -> Iterator[bytes]:
    """Yield a seed with every one of its values changed, one at a time, in every usual way."""
    values = form.read(data)
    changes = [
        (path, new)
        for path in _paths(values)
        for new in [_DROP, *_like(_at(values, path)), *_UNLIKE]
    ]
    random.shuffle(changes)
    for path, new in changes:
        changed = _without(values, path) if new is _DROP else _with(values, path, new)
        with contextlib.suppress(ValueError, OverflowError, RecursionError, TypeError):
            yield form.write(changed)


@st.composite
def _damaged(draw: st.DrawFn, data: bytes, seeds: Sequence[bytes]) -> bytes:
    what = draw(
        st.sampled_from(["bytes", "flip", "flip", "cut", "insert", "token", "splice", "raw"])
    )
    place = draw(st.integers(0, max(len(data), 1)))
    if what == "raw":
        return draw(st.binary(max_size=400))
    if what == "cut":
        return data[:place]
    if what == "insert":
        return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
    if what == "token":
        return data[:place] + draw(st.sampled_from(_TOKENS)) + data[place:]
    if what == "splice":
        other = draw(st.sampled_from(seeds))
        return data[:place] + other[draw(st.integers(0, max(len(other), 1))) :]
    if what == "flip" and data:
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
    count = draw(st.integers(1, 8))
    return data[:place] + draw(st.binary(min_size=count, max_size=count)) + data[place + count :]


def _paths(values: Any, path: Path = (), depth: int = 0) -> Any:
    yield path
    if depth > 12:
        return
    if isinstance(values, dict):
        for key in list(values)[:64]:
            yield from _paths(values[key], (*path, key), depth + 1)
    elif isinstance(values, list):
        for index in range(min(len(values), 16)):
            yield from _paths(values[index], (*path, index), depth + 1)


def _weight(value: Any, depth: int = 0) -> int:
    """Return about how many bytes a value takes when it is written."""
    if isinstance(value, str | bytes):
        return len(value) + 1
    if depth > 300:
        return 1
    if isinstance(value, dict):
        return sum(_weight(key) + _weight(item, depth + 1) for key, item in value.items()) + 1
    if isinstance(value, list):
        return sum(_weight(item, depth + 1) for item in value) + 1
    return 8


def _at(values: Any, path: Path) -> Any:
    for step in path:
        values = values[step]
    return values


def _with(values: Any, path: Path, new: Any) -> Any:
    """Return a copy with another value at `path`; the original stays as it was."""
    if not path:
        return new
    copy = values.copy()
    copy[path[0]] = _with(values[path[0]], path[1:], new)
    return copy


def _without(values: Any, path: Path) -> Any:
    if not path:
        return None
    copy = values.copy()
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(values[path[0]], path[1:])
    return copy


def _plain_json(value: Any) -> Any:
    """Return a value that `json` can write: bytes become text in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_json(item) for item in value]
    return value


def _write_json(values: Any) -> bytes:
    return json.dumps(_plain_json(values)).encode()


def _read_message(data: bytes) -> Any:
    body = data[1:]
    if data[:1] == b"\x01":
        body = zstandard.ZstdDecompressor().decompress(body)
    return [data[0], msgspec.msgpack.decode(body)]


def _write_message(values: Any) -> bytes:
    encoding, body = values if isinstance(values, list) and len(values) == 2 else (0, values)
    packed = msgspec.msgpack.encode(body)
    if encoding == 1:
        packed = zstandard.ZstdCompressor(level=1).compress(packed)
    return (
        bytes([encoding]) if isinstance(encoding, int) and 0 <= encoding < 256 else b""
    ) + packed


def _read_calls(data: bytes) -> Any:
    head, _, body = data.partition(b"\n")
    return [json.loads(head), body]


def _write_calls(values: Any) -> bytes:
    head, body = values if isinstance(values, list) and len(values) == 2 else (values, b"")
    tail = body if isinstance(body, bytes) else _write_json(body)
    return _write_json(head) + b"\n" + tail


JSON = Form(json.loads, _write_json)
MSGPACK = Form(msgspec.msgpack.decode, msgspec.msgpack.encode)
# A payload of `edgefleet_protocol.codec`.
MESSAGE = Form(_read_message, _write_message)
# A line of JSON that says how, and the bytes themselves.
HEADED = Form(_read_calls, _write_calls)
