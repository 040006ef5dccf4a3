"""The attested time as it is signed and read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_protocol.attesting import (
    CHALLENGE_BYTES,
    NONCE_BYTES,
    TIME_DOMAIN,
    TimeStatement,
    read_time,
    signed_time,
)
from edgefleet_protocol.errors import MalformedError, RefusedError

NONCE, CHALLENGE = bytes(NONCE_BYTES), bytes(CHALLENGE_BYTES)


def statement(**changes: object) -> bytes:
    fields = {"device": "cam-1", "nonce": NONCE, "at": 1.5, "challenge": CHALLENGE} | changes
    return msgspec.msgpack.encode(fields)


def test_a_statement_is_read_as_it_was_signed() -> None:
    assert read_time(statement(), "cam-1", NONCE) == TimeStatement("cam-1", NONCE, 1.5, CHALLENGE)


def test_a_field_of_a_newer_hub_is_left_out() -> None:
    assert read_time(statement(leap_seconds=37), "cam-1", NONCE).at == 1.5


@pytest.mark.parametrize(
    ("device", "nonce", "reason"),
    [("cam-2", NONCE, "wrong-device"), ("cam-1", b"\x01" * NONCE_BYTES, "replay")],
)
def test_an_answer_to_somebody_or_something_else_is_refused(
    device: str, nonce: bytes, reason: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        read_time(statement(), device, nonce)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"at": -0.1},
        {"at": 1e11},
        {"at": float("nan")},
        {"at": "noon"},
        {"nonce": bytes(15)},
        {"nonce": bytes(33)},
        {"challenge": bytes(15)},
        {"challenge": bytes(17)},
        {"device": "x" * 65},
    ],
)
def test_a_statement_out_of_its_limits_cannot_be_read(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match="the statement cannot be read"):
        read_time(statement(**changes), "cam-1", NONCE)


@given(st.binary(max_size=200))
def test_whatever_comes_is_refused_or_read_and_nothing_else(data: bytes) -> None:
    with pytest.raises((MalformedError, RefusedError)):
        read_time(data, "cam-1", NONCE)


@given(st.binary(max_size=200))
def test_what_is_signed_begins_with_its_domain_and_is_nothing_that_tuf_signs(data: bytes) -> None:
    signed = signed_time(data)
    assert signed == TIME_DOMAIN + data
    assert not signed.startswith(b"{")  # canonical JSON of a role does
