"""A short pass of `make fuzz`, always the same inputs, and every input that ever failed."""

import re
from types import UnionType
from typing import Any

import msgspec
import pytest

from edgefleet_protocol import messages
from tests.fuzz import engine, protocol_targets
from tests.fuzz.__main__ import summary
from tests.fuzz.engine import Tally
from tests.fuzz.oracle import FoundError, judge
from tests.fuzz.targets import CORPUS, Target, every, named

TARGETS = every()
# Of each kind, for each target; those that write to a database or run an engine are slow.
EXAMPLES, SLOW_EXAMPLES = 40, 12


def _is_slow(target: Target) -> bool:
    return target.bounds.seconds > 2.0


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_decoder_takes_or_refuses_every_input(target: Target) -> None:
    tally = engine.run(target, examples=SLOW_EXAMPLES if _is_slow(target) else EXAMPLES)
    assert [finding.text for finding in tally.findings] == []
    assert tally.executions > SLOW_EXAMPLES
    assert tally.accepted > 0, "all are refused at the door, and nothing behind it is fuzzed"


def test_every_target_has_a_name_and_a_corpus_of_its_own() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)
    assert {path.name for path in CORPUS.iterdir()} == {*names, "hub-api"}
    assert all(any(name.startswith("seed-") for name, _ in target.corpus()) for target in TARGETS)


def test_every_message_type_is_fuzzed() -> None:
    """A type that is neither a target nor a part of one is a decoder that nobody fuzzes."""
    declared = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__
    } - {msgspec.Struct}
    fuzzed: set[Any] = set()
    for kind in protocol_targets.MESSAGES.values():
        _gather(msgspec.inspect.type_info(kind), fuzzed)
    assert declared - fuzzed == set()
    assert isinstance(messages.Request, UnionType)


def _gather(info: Any, found: set[Any]) -> None:
    if isinstance(info, msgspec.inspect.StructType):
        found.add(info.cls)
        for field in info.fields:
            _gather(field.type, found)
    for part in getattr(info, "types", ()):
        _gather(part, found)
    for name in ("type", "item_type", "value_type"):
        if hasattr(info, name):
            _gather(getattr(info, name), found)


def test_the_last_line_counts_targets_executions_and_findings() -> None:
    finding = engine.Finding("hang", "text", b"")
    ran = [Tally("a", "hypothesis", 1000, findings=[finding]), Tally("a", "guided", 234)]
    expected = "1 targets, 1,234 executions, 0 crashes, 1 hangs, 0 over-allocations"
    assert summary(ran) == expected


def test_the_same_seed_gives_the_same_inputs() -> None:
    target = named("topic")
    seen: list[list[bytes]] = []
    for _ in range(2):
        inputs: list[bytes] = []
        engine.run(target, examples=20, before=inputs.append)
        seen.append(inputs)
    assert seen[0] == seen[1]


def test_a_decoder_that_is_defective_is_found_out() -> None:
    def defective(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("a defect")

    target = Target("defective", protocol_targets.pure(defective), (), lambda: [b"abc"])
    tally = engine.run(target, examples=500)
    assert [finding.kind for finding in tally.findings] == ["crash"]
    assert len(tally.findings[0].data) < 20, "not shrunk"
    assert re.search("KeyError: 'a defect'", tally.findings[0].text)


def test_a_decoder_without_an_end_is_found_out() -> None:
    def endless(_data: bytes) -> None:
        while True:
            pass

    bounds = protocol_targets.Bounds(seconds=0.05)
    with pytest.raises(FoundError, match=r"over 0\.05 s for 3 bytes") as found:
        judge(endless, b"abc", (), bounds)
    assert found.value.kind == "hang"


def test_an_allocation_out_of_proportion_is_found_out() -> None:
    bounds = protocol_targets.Bounds(factor=2, floor_bytes=10_000)
    kept: list[bytearray] = []
    assert judge(lambda data: kept.append(bytearray(5_000)), b"", (), bounds)
    with pytest.raises(FoundError, match="bytes for 5000 of input; at most 20000") as found:
        judge(lambda data: bytearray(30_000), bytes(5_000), (), bounds)
    assert found.value.kind == "over-allocation"


def test_a_refusal_that_is_documented_is_no_finding() -> None:
    def refuse(data: bytes) -> None:
        raise ValueError(data)

    assert judge(refuse, b"", (ValueError,), protocol_targets.Bounds()) is False
    with pytest.raises(FoundError, match="crash: ValueError"):
        judge(refuse, b"", (KeyError,), protocol_targets.Bounds())
