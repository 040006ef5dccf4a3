"""Payload ↔ message: round trips, and refusal of everything hostile."""

import tracemalloc

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_protocol import codec, messages
from edgefleet_protocol.errors import MalformedError, TooLargeError


def window(**changes: object) -> messages.Window:
    values: dict[str, object] = {
        "model": "digits",
        "version": "1",
        "release": 1,
        "manifest": "a" * 64,
        "reference": "b" * 64,
        "start": 0.0,
        "end": 1.0,
        "rows": 500,
        "counts": b"\x01\x02",
        "moments": b"",
    }
    return messages.Window(**{**values, **changes})  # type: ignore[arg-type]  # built by name


def report(body: object) -> messages.Report:
    return messages.Report(device="cam-1", store="s", number=7, at=1.5, body=body)  # type: ignore[arg-type]  # each body in turn


BODIES = [
    window(),
    window(labelled=10, correct=9, psi=[0.1, 0.2], predictions=[1, 2]),
    messages.Samples("m", "1", 1, "retraining", ["a"], b"\0\0\0\0", ["x"], ["y"]),
    messages.Result(3, "m", "1", 1, "c" * 64, messages.Step.ROLLED_BACK, "why"),
    messages.Refusal("assignment", "rollback", "older"),
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("compress", [True, False])
def test_a_report_comes_back_as_it_was_sent(body: object, compress: bool) -> None:
    sent = report(body)
    assert codec.decode(codec.encode(sent, compress=compress), messages.Report) == sent


def test_a_long_message_is_compressed_and_a_short_one_is_not() -> None:
    assert codec.encode(report(window(counts=bytes(5000))))[0] == codec.ZSTD
    assert codec.encode(messages.Ack("s", [1]))[0] == codec.PLAIN


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    newer = {"store": "s", "numbers": [1], "colour": "blue"}
    assert codec.decode(b"\0" + msgspec.msgpack.encode(newer), messages.Ack).numbers == [1]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "empty message"),
        (b"\x07abc", "unknown message encoding 7"),
        (b"\x00\xc1", "cannot be read as Ack"),
        (b"\x01not zstd", "no zstd frame"),
        (b"\x00" + msgspec.msgpack.encode({"store": "s"}), "numbers"),
        (b"\x00" + msgspec.msgpack.encode({"store": "s" * 65, "numbers": []}), "store"),
        (b"\x00" + msgspec.msgpack.encode({"store": "s", "numbers": [-1]}), "numbers"),
    ],
)
def test_a_malformed_message_is_refused_with_its_reason(payload: bytes, text: str) -> None:
    with pytest.raises(MalformedError, match=text):
        codec.decode(payload, messages.Ack)


def test_the_limit_holds_at_the_byte() -> None:
    payload = codec.encode(messages.Ack("s", [1, 2, 3]), compress=False)
    codec.decode(payload, messages.Ack, limit=len(payload))
    with pytest.raises(TooLargeError) as refused:
        codec.decode(payload, messages.Ack, limit=len(payload) - 1)
    assert (refused.value.size, refused.value.limit) == (len(payload), len(payload) - 1)


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xc6", b"\xdb"])
def test_a_hostile_length_allocates_nothing(header: bytes) -> None:
    hostile = b"\x00\x82\xa5store\xa1s\xa7numbers" + header + b"\xff\xff\xff\xff\x01"
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError):
            codec.decode(hostile, messages.Ack)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_compression_bomb_is_refused_by_its_declared_size() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(TooLargeError, match="50000000"):
        codec.decode(b"\x01" + bomb, messages.Ack)


def test_a_frame_that_declares_no_size_is_refused() -> None:
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    with pytest.raises(MalformedError, match="does not declare its size"):
        codec.decode(b"\x01" + stream.compress(b"x" * 100) + stream.flush(), messages.Ack)


def test_deep_nesting_is_refused() -> None:
    nested = b"\x00\x83\xa5store\xa1s\xa7numbers\x90\xa1x" + b"\x91" * 100_000
    with pytest.raises(MalformedError):
        codec.decode(nested, messages.Ack)


@given(st.binary(max_size=300))
def test_random_bytes_give_a_message_or_a_refusal(noise: bytes) -> None:
    for kind in (messages.Report, messages.State, messages.Request, messages.Assignment):
        try:
            codec.decode(noise, kind)  # type: ignore[arg-type]  # a union is a valid decoder type
        except (MalformedError, TooLargeError):
            continue


@given(st.data())
def test_any_flipped_byte_of_a_report_gives_a_report_or_a_refusal(data: st.DataObject) -> None:
    payload = bytearray(codec.encode(report(BODIES[data.draw(st.integers(0, len(BODIES) - 1))])))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        codec.decode(bytes(payload), messages.Report)
    except (MalformedError, TooLargeError):
        return
