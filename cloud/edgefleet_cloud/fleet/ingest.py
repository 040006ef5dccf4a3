"""Taking in what devices say: states and reports, one commit for a whole batch.

Rules:

1. A message counts for the device of its topic, which the broker has bound to a certificate. One
   that names another device or cannot be read is logged and counted, never acknowledged, and never
   stops the others. A report that can be read and cannot be true is discarded: it opens an
   incident, and is acknowledged, because the device would only send the same again for ever.
2. States are ordered by (boot, sequence); an older or equal one changes nothing.
3. A report is stored once under (device, store, number), however often it arrives; each time it is
   acknowledged, and only after the commit.
4. A device whose state is behind its signed assignment is sent it again.
5. What a device has signed is checked by `statements`.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Device,
    DeviceState,
    DirectorRecord,
    RefusalRecord,
    ReportRecord,
    ResultRecord,
    SampleRecord,
    WindowRecord,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet import assignments, plausible, refusals, statements
from edgefleet_cloud.fleet.statements import ChallengeAge
from edgefleet_cloud.storage import Store
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import MalformedError, ProtocolError
from edgefleet_protocol.messages import Attested, Refusal, Report, Result, Samples, State, Window

_log = logging.getLogger(__name__)

Key = tuple[str, str, int]
_KINDS: dict[type, str] = {
    Window: "window",
    Samples: "samples",
    Result: "result",
    Refusal: "refusal",
    Attested: "attested",
}


@dataclass(frozen=True)
class Inbound:
    """A message as it came from the broker, untrusted."""

    topic: str
    payload: bytes


@dataclass
class IngestOutcome:
    """What a batch came to.

    Attributes:
        acks: (device, store) → numbers of the reports that are committed now.
        states: how many states were newer than what was known.
        reports: how many reports were new; `results` of them say how an attempt ended.
        malformed: (topic, reason) of every message that was refused.
        publish_again: devices whose assignment is to be published once more.
        metadata_refused: whether a device refused image metadata.
    """

    acks: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    states: int = 0
    reports: int = 0
    results: int = 0
    malformed: list[tuple[str, str]] = field(default_factory=list)
    publish_again: set[str] = field(default_factory=set)
    metadata_refused: bool = False


def ingest(
    database: Database,
    store: Store,
    batch: Sequence[Inbound],
    now: float,
    *,
    challenge_age: ChallengeAge = lambda _device, _challenge: None,
) -> IngestOutcome:
    """Take in a batch of `up/state` and `up/report` messages, in one commit.

    Args:
        database: the hub's.
        store: the hub's own copy of what devices refuse is looked at.
        batch: in the order of arrival.
        now: the time.
        challenge_age: dates the hub's challenges in signed statements; without it none is known.
    """
    outcome = IngestOutcome()
    states: dict[str, State] = {}
    reports: dict[Key, tuple[Report, int]] = {}
    impossible: dict[Key, str] = {}
    for inbound in batch:
        message: State | Report | None = None
        try:
            message = _read(inbound)
            _check(message)
        except ProtocolError as error:
            _refuse(outcome, inbound.topic, str(error))
            if isinstance(message, Report):
                key = (message.device, message.store, message.number)
                impossible.setdefault(key, str(error))
            continue
        if isinstance(message, State):
            known = states.get(message.device)
            if known is None or _order(message) > _order(known):
                states[message.device] = message
        else:
            key = (message.device, message.store, message.number)
            reports.setdefault(key, (message, len(inbound.payload)))
    copies = _examine(store, reports.values())
    with database.write() as session:
        speakers = {*states, *(device for device, _, _ in (*reports, *impossible))}
        devices = _enrolled(session, speakers)
        for stranger in speakers - set(devices):
            _refuse(outcome, stranger, "the device is not enrolled")
        _take_states(session, outcome, devices, states, now)
        discarded = {key: reason for key, reason in impossible.items() if key[0] in devices}
        for (device, _, _), reason in discarded.items():
            refusals.discard(session, device, reason, now)
        known_reports = {key: held for key, held in reports.items() if key[0] in devices}
        _take_reports(session, outcome, known_reports, copies, challenge_age, now)
        seen = {device for device, _, _ in known_reports}
        if seen:
            session.execute(update(Device).where(Device.id.in_(seen)).values(last_seen_at=now))
        if outcome.publish_again:
            assignments.publish_again(session, sorted(outcome.publish_again))
    for device, store_name, number in (*known_reports, *discarded):
        outcome.acks[device, store_name].append(number)
    return outcome


def _read(inbound: Inbound) -> State | Report:
    device, kind = topics.parse_up(inbound.topic)
    message: State | Report
    if kind == "state":
        message = codec.decode(inbound.payload, State)
    else:
        message = codec.decode(inbound.payload, Report)
    if message.device != device:
        raise MalformedError(f"the message names device {message.device!r}")
    return message


def _check(message: State | Report) -> None:
    if isinstance(message, State):
        plausible.check_state(message)
    else:
        plausible.check_report(message)


def _refuse(outcome: IngestOutcome, topic: str, reason: str) -> None:
    _log.warning("message on %s refused: %s", topic[:120], reason)
    outcome.malformed.append((topic, reason))


def _order(state: State) -> tuple[int, int]:
    return state.boot, state.sequence


def _examine(store: Store, reports: Iterable[tuple[Report, int]]) -> dict[str, refusals.Copy]:
    """Look at the hub's own copies before the transaction: hashing a large file takes its time."""
    named = {
        report.body.digest
        for report, _ in reports
        if isinstance(report.body, Refusal) and report.body.digest
    }
    return {digest: refusals.examine(store, digest) for digest in named}


def _enrolled(session: Session, device_ids: set[str]) -> dict[str, tuple[int, int]]:
    """Return (boot, sequence) of those devices that are enrolled."""
    rows = session.execute(
        select(Device.id, Device.boot, Device.sequence).where(
            Device.id.in_(device_ids), Device.state == DeviceState.ENROLLED
        )
    )
    return {row.id: (row.boot, row.sequence) for row in rows}


def _take_states(
    session: Session,
    outcome: IngestOutcome,
    devices: dict[str, tuple[int, int]],
    states: dict[str, State],
    now: float,
) -> None:
    fresh = [
        state
        for device, state in states.items()
        if device in devices and _order(state) > devices[device]
    ]
    if not fresh:
        return
    outcome.states = len(fresh)
    session.execute(
        update(Device),
        [
            {
                "id": state.device,
                "boot": state.boot,
                "sequence": state.sequence,
                "board": state.board,
                "runtimes": state.runtimes,
                "memory_bytes": state.memory_bytes,
                "agent_version": state.agent_version,
                "reported": msgspec.to_builtins(state),
                "last_seen_at": now,
            }
            for state in fresh
        ],
    )
    accepted = {state.device: state.assignment for state in fresh}
    signed = session.execute(
        select(DirectorRecord.device_id, DirectorRecord.signed_sequence).where(
            DirectorRecord.device_id.in_(accepted), DirectorRecord.published.is_(True)
        )
    )
    outcome.publish_again |= {
        row.device_id for row in signed if row.signed_sequence > accepted[row.device_id]
    }


def _take_reports(
    session: Session,
    outcome: IngestOutcome,
    reports: dict[Key, tuple[Report, int]],
    copies: dict[str, refusals.Copy],
    challenge_age: ChallengeAge,
    now: float,
) -> None:
    ids = _claim_numbers(session, reports, now)
    outcome.reports = len(ids)
    rows: dict[type, list[dict[str, Any]]] = defaultdict(list)
    for key, report_id in ids.items():
        report, _ = reports[key]
        body = report.body
        statements.note_store(session, report.device, report.store, now)
        head = {"report_id": report_id, "device_id": report.device}
        if isinstance(body, Window):
            values = _columns(body) | {"health": msgspec.to_builtins(body.health)}
            rows[WindowRecord].append(head | values | {"received_at": now})
        elif isinstance(body, Samples):
            values = _columns(body) | {"at": report.at, "received_at": now}
            values.pop("release")
            rows[SampleRecord].append(head | values)
        elif isinstance(body, Result):
            values = _columns(body) | {"outcome": body.outcome.value, "at": report.at}
            rows[ResultRecord].append(head | values)
        elif isinstance(body, Attested):
            statements.take(session, report_id, report.device, body, challenge_age, now)
        else:
            _take_refusal(session, outcome, report.device, body, copies, now)
            rows[RefusalRecord].append(head | _columns(body) | {"at": report.at})
    outcome.results = len(rows[ResultRecord])
    for table, values_of_table in rows.items():
        if values_of_table:
            session.execute(insert(table), values_of_table)


def _claim_numbers(
    session: Session, reports: dict[Key, tuple[Report, int]], now: float
) -> dict[Key, int]:
    """Insert the keys that are not there yet; return key → id of those alone."""
    if not reports:
        return {}
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    columns = (
        ReportRecord.id,
        ReportRecord.device_id,
        ReportRecord.store,
        ReportRecord.number,
    )
    statement = dialect.insert(ReportRecord).on_conflict_do_nothing().returning(*columns)
    rows = session.execute(
        statement,
        [
            {
                "device_id": device,
                "store": store,
                "number": number,
                "kind": _KINDS[type(report.body)],
                "payload_bytes": size,
                "at": report.at,
                "received_at": now,
            }
            for (device, store, number), (report, size) in reports.items()
        ],
    )
    return {(row.device_id, row.store, row.number): row.id for row in rows}


def _take_refusal(
    session: Session,
    outcome: IngestOutcome,
    device: str,
    refusal: Refusal,
    copies: dict[str, refusals.Copy],
    now: float,
) -> None:
    if refusal.what == refusals.ASSIGNMENT and not refusals.recently_refused(
        session, device, refusal.what, now
    ):
        outcome.publish_again.add(device)
    outcome.metadata_refused |= refusal.what == refusals.IMAGE_METADATA
    refusals.record(session, device, refusal, copies, now)


def _columns(body: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a report's body: its table has columns of the same names."""
    return {name: getattr(body, name) for name in body.__struct_fields__}
