"""Topics and identifiers."""

import pytest

from edgefleet_protocol import identifiers, topics
from edgefleet_protocol.errors import MalformedError


def test_topics_are_as_documented() -> None:
    assert topics.up("cam-1", "state") == "ef/1/d/cam-1/up/state"
    assert topics.down("cam-1", "blocks") == "ef/1/d/cam-1/down/blocks"
    assert topics.fleet_meta("root-3") == "ef/1/fleet/meta/root-3"
    assert topics.fleet_blob("a" * 64) == f"ef/1/fleet/blob/{'a' * 64}"
    assert topics.parse_up("ef/1/d/cam-1/up/report") == ("cam-1", "report")


@pytest.mark.parametrize(
    "topic",
    [
        "ef/2/d/cam-1/up/state",
        "ef/1/d/cam-1/down/state",
        "ef/1/d/cam-1/up/state/x",
        "ef/1/d/cam 1/up/state",
        "ef/1/d/+/up/state",
        "ef/1/d/cam-1/up/other",
        "",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(MalformedError):
        topics.parse_up(topic)


@pytest.mark.parametrize("name", ["", "a" * 65, "-a", "a/b", "a.b", "a b", "a#", "é", "a\n"])
def test_a_device_id_that_a_broker_could_misread_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="is no device id"):
        identifiers.device_id(name)


def test_the_longest_device_id_is_64_characters() -> None:
    assert identifiers.device_id("a" * 64) == "a" * 64


def test_a_digest_is_64_lower_case_hexadecimal_digits() -> None:
    assert identifiers.digest(identifiers.digest_of(b"")) == identifiers.digest_of(b"")
    for wrong in ("A" * 64, "a" * 63, "../" + "a" * 61):
        with pytest.raises(MalformedError):
            identifiers.digest(wrong)
