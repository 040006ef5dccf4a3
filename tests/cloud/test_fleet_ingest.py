"""Taking in states and reports: order, repetition, and messages that lie."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgefleet_cloud.database.models import (
    Base,
    Device,
    DeviceIdentity,
    Incident,
    RefusalRecord,
    ReportRecord,
    ResultRecord,
    SampleRecord,
    WindowRecord,
)
from edgefleet_cloud.fleet import devices
from edgefleet_cloud.fleet.ingest import Inbound, IngestOutcome, ingest
from edgefleet_cloud.fleet.plausible import MAX_BYTES, MAX_COUNT, MAX_TIME_S
from edgefleet_cloud.fleet.testing import enrol, open_services
from edgefleet_cloud.services import Services
from edgefleet_protocol import codec, topics
from edgefleet_protocol.messages import (
    Attempt,
    Health,
    Refusal,
    Report,
    Result,
    Samples,
    State,
    Step,
    Window,
)

NOW = 1_800_000_000.0
DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home: Path = tmp_path_factory.mktemp("hub")
    opened = open_services(home, lambda: NOW)
    for name in ("cam-1", "cam-2"):
        enrol(opened, name, home / "devices")
    yield opened
    opened.database.close()


@pytest.fixture(autouse=True)
def empty(services: Services) -> None:
    clear(services)


def clear(services: Services) -> None:
    with services.database.write() as session:
        session.query(DeviceIdentity).update({"stores": []})
        for table in (WindowRecord, SampleRecord, ResultRecord, RefusalRecord, ReportRecord):
            session.query(table).delete()
        session.query(Incident).delete()
        for device in session.query(Device):
            device.boot, device.sequence, device.reported = 0, 0, {}
            device.last_seen_at = None


def take(services: Services, *messages: State | Report | Inbound) -> IngestOutcome:
    batch = [m if isinstance(m, Inbound) else inbound(m) for m in messages]
    return ingest(services.database, services.store, batch, NOW)


def inbound(message: State | Report, device: str | None = None) -> Inbound:
    kind = "state" if isinstance(message, State) else "report"
    return Inbound(topics.up(device or message.device, kind), codec.encode(message))


def state(boot: int = 1, sequence: int = 1, **fields: object) -> State:
    values: dict[str, object] = {
        "device": "cam-1",
        "boot": boot,
        "sequence": sequence,
        "at": NOW,
        "agent_version": f"{boot}.{sequence}",
        "board": "rpi4",
        "runtimes": {"litert": "1.2"},
        "memory_bytes": 1 << 30,
        "assignment": 0,
        "serving": [],
    }
    return State(**(values | fields))  # type: ignore[arg-type]


def window(**fields: object) -> Window:
    values: dict[str, object] = {
        "model": "digits",
        "version": "1",
        "release": 1,
        "manifest": DIGEST,
        "reference": DIGEST,
        "start": NOW - 60,
        "end": NOW,
        "rows": 100,
        "counts": b"\x01",
        "moments": b"\x02",
        "predictions": [60, 40],
        "psi": [0.5],
        "health": Health(cpu_percent=5.0),
    }
    return Window(**(values | fields))  # type: ignore[arg-type]


def samples(**fields: object) -> Samples:
    values: dict[str, object] = {
        "model": "digits",
        "version": "1",
        "release": 1,
        "purpose": "retraining",
        "columns": ["a", "b"],
        "rows": b"\x00" * 16,
        "labels": ["0", "1"],
        "predicted": ["1", "1"],
    }
    return Samples(**(values | fields))  # type: ignore[arg-type]


def result(**fields: object) -> Result:
    values: dict[str, object] = {
        "attempt": 1,
        "model": "digits",
        "version": "1",
        "release": 1,
        "manifest": DIGEST,
        "outcome": Step.CONFIRMED,
    }
    return Result(**(values | fields))  # type: ignore[arg-type]


def report(body: object, number: int = 1, device: str = "cam-1", store: str = "s") -> Report:
    return Report(device, store, number, NOW, body)  # type: ignore[arg-type]


def rows(services: Services, *tables: type[Base]) -> list[int]:
    with services.database.read() as session:
        return [session.query(table).count() for table in tables]


def test_each_kind_of_report_goes_to_its_table_under_one_commit(services):
    refusal = Refusal("bundle", "oversized", "too big")
    bodies = [window(), samples(), result(), refusal]
    outcome = take(services, *(report(body, number) for number, body in enumerate(bodies)))
    assert outcome.acks == {("cam-1", "s"): [0, 1, 2, 3]}
    assert (outcome.reports, outcome.results, outcome.malformed) == (4, 1, [])
    tables = (ReportRecord, WindowRecord, SampleRecord, ResultRecord, RefusalRecord)
    assert rows(services, *tables) == [4, 1, 1, 1, 1]
    with services.database.read() as session:
        held = session.query(WindowRecord).one()
        assert (held.rows, held.predictions, held.psi) == (100, [60, 40], [0.5])
        assert (held.health, held.received_at) == ({"cpu_percent": 5.0}, NOW)
        assert session.query(ResultRecord).one().outcome == "confirmed"
        assert session.get_one(Device, "cam-1").last_seen_at == NOW


REPORTS = [
    report(window(rows=100 + number), number, device, store)
    for device in ("cam-1", "cam-2")
    for store in ("s", "t")
    for number in range(3)
]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(REPORTS), max_size=20),
    st.permutations(REPORTS),
    st.integers(1, 7),
)
def test_reports_repeated_in_any_order_and_batches_give_the_same_rows(
    services, repeats, order, size
):
    clear(services)
    sent = [*repeats, *order]
    acknowledged = set()
    for start in range(0, len(sent), size):
        outcome = take(services, *sent[start : start + size])
        acknowledged |= {
            (*key, number) for key, numbers in outcome.acks.items() for number in numbers
        }
    with services.database.read() as session:
        held = {
            (r.device_id, r.store, r.number, w.rows)
            for r, w in session.query(ReportRecord, WindowRecord).join(
                WindowRecord, WindowRecord.report_id == ReportRecord.id
            )
        }
    assert held == {(r.device, r.store, r.number, r.body.rows) for r in REPORTS}
    assert acknowledged == {(r.device, r.store, r.number) for r in REPORTS}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_newest_state_wins_in_whatever_order_states_come(services, orders):
    clear(services)
    for start in range(0, len(orders), 3):
        take(services, *(state(*order) for order in orders[start : start + 3]))
    with services.database.read() as session:
        device = session.get_one(Device, "cam-1")
    newest = max(orders)
    assert (device.boot, device.sequence) == newest
    if newest > (0, 0):
        assert device.agent_version == f"{newest[0]}.{newest[1]}"


def test_a_state_is_kept_whole(services):
    attempt = Attempt(3, "digits", 2, DIGEST, Step.FETCHING, received_bytes=10, total_bytes=20)
    assert take(services, state(attempts=[attempt])).states == 1
    with services.database.read() as session:
        row = devices.describe(session, "cam-1", NOW)
    assert row["attempts"][0]["step"] == "fetching"
    assert (row["board"], row["runtimes"]) == ("rpi4", {"litert": "1.2"})


def test_a_message_that_names_another_device_is_refused(services):
    outcome = take(services, inbound(report(window()), "cam-2"), inbound(state(), "cam-2"))
    assert outcome.acks == {}
    assert [reason for _, reason in outcome.malformed] == ["the message names device 'cam-1'"] * 2
    assert rows(services, ReportRecord) == [0]


def test_a_device_that_is_not_enrolled_is_not_listened_to(services):
    stranger = report(window(), device="stranger")
    outcome = take(services, stranger, report(window()))
    assert outcome.acks == {("cam-1", "s"): [1]}
    assert outcome.malformed == [("stranger", "the device is not enrolled")]


def test_a_bad_message_does_not_take_the_good_ones_with_it(services):
    bad = [
        Inbound(topics.up("cam-1", "report"), payload)
        for payload in (b"", b"\x00", b"\x09x", b"\x01\x28\xb5\x2f\xfd", b"\x00" + b"\x91" * 5000)
    ]
    bad.append(Inbound("ef/1/d/cam-1/up/nonsense", b""))
    bad.append(Inbound("other/topic", b""))
    outcome = take(services, *bad, report(window()), state())
    assert len(outcome.malformed) == 7
    assert (outcome.reports, outcome.states) == (1, 1)


@given(st.binary(max_size=200))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_whatever_stop_a_batch(services, payload):
    outcome = take(
        services,
        Inbound(topics.up("cam-1", "report"), payload),
        Inbound(topics.up("cam-1", "state"), payload),
    )
    assert outcome.acks == {}
    assert len(outcome.malformed) == 2


@pytest.mark.parametrize(
    "body",
    [
        window(rows=MAX_COUNT + 1, predictions=[]),
        window(predictions=[60, 41]),
        window(confidences=[101]),
        window(labelled=101),
        window(labelled=10, correct=11),
        window(end=MAX_TIME_S + 1),
        window(start=-1.0),
        window(end=math.nan),
        window(psi=[math.inf]),
        window(health=Health(temperature_c=math.nan)),
        window(health=Health(disk_free_bytes=MAX_BYTES + 1)),
        window(latency_us=[2**63]),
        window(model="No Such"),
        window(version="1\x00"),
        samples(rows=b"\x00" * 15),
        samples(predicted=["1"]),
        samples(labels=["0", "\x00"]),
        result(outcome=Step.FETCHING),
        result(seconds=math.inf),
        result(attempt=MAX_COUNT + 1),
        result(bytes_fetched=MAX_BYTES + 1),
        Refusal("bundle", "r", "t\x00"),
        Refusal("bundle", "r", "t", "short"),
    ],
)
def test_a_report_that_cannot_be_true_is_discarded_with_an_incident(services, body):
    outcome = take(services, report(body), report(body))
    assert outcome.acks == {("cam-1", "s"): [1]}
    assert len(outcome.malformed) == 2
    assert rows(services, ReportRecord) == [0]
    (incident,) = incidents(services)
    assert (incident.kind, incident.devices) == ("malformed-report", ["cam-1"])
    assert "cannot be true" in incident.text


@pytest.mark.parametrize(
    "body",
    [
        window(rows=MAX_COUNT, predictions=[]),
        window(predictions=[60, 40], confidences=[100], labelled=100, correct=100),
        window(start=NOW, end=NOW),
        window(end=MAX_TIME_S),
        window(start=NOW, end=NOW - 1),  # the clock was set back meanwhile
        window(start=0.0),
        window(rows=0, predictions=[]),
        window(health=Health(disk_free_bytes=MAX_BYTES)),
        samples(columns=[], rows=b""),
        samples(labels=[], predicted=[], rows=b""),
    ],
)
def test_a_report_at_the_edge_is_taken(services, body):
    assert take(services, report(body)).acks == {("cam-1", "s"): [1]}


@pytest.mark.parametrize(
    "fields",
    [
        {"at": math.nan},
        {"at": MAX_TIME_S + 1},
        {"boot": MAX_COUNT + 1},
        {"memory_bytes": MAX_BYTES + 1},
        {"runtimes": {"a\x00": "1"}},
        {"attempts": [Attempt(1, "m", 1, DIGEST, Step.IDLE, received_bytes=2**60)]},
    ],
)
def test_a_state_that_cannot_be_true_is_refused(services, fields):
    outcome = take(services, replace(state(), **fields))
    assert (outcome.states, len(outcome.malformed)) == (0, 1)


# --- refusals ---------------------------------------------------------------------------------


def incidents(services: Services) -> list[Incident]:
    with services.database.read() as session:
        return session.query(Incident).order_by(Incident.id).all()


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        ("intact", "own copy is intact"),
        ("damaged", "own copy is damaged"),
        ("absent", "has no such file"),
    ],
)
def test_a_refused_artifact_has_the_hub_look_at_its_own_copy(services, copy, said):
    content = f"artifact {copy}".encode()
    digest = services.store.put(content)
    if copy == "damaged":
        services.store.path(digest).write_bytes(b"flipped")
    if copy == "absent":
        services.store.path(digest).unlink()
    take(services, report(Refusal("artifact block", "hash-mismatch", "block 3", digest)))
    (incident,) = incidents(services)
    assert (incident.kind, incident.scope, incident.devices) == (
        "refused-artifact",
        "device",
        ["cam-1"],
    )
    assert said in incident.text
    assert digest in incident.text


def test_one_incident_is_open_for_a_kind_device_and_digest(services):
    block = Refusal("artifact block", "hash-mismatch", "block 3", DIGEST)
    take(services, report(block, 1), report(block, 2))
    take(services, report(block, 3), report(block, 1, device="cam-2"))
    take(services, report(replace(block, digest="cd" * 32), 4))
    assert len(incidents(services)) == 3
    with services.database.write() as session:
        session.query(Incident).update({"closed_at": NOW})
    take(services, report(block, 5))
    assert len(incidents(services)) == 4


def test_a_refused_assignment_is_published_again_but_not_every_time(services):
    refusal = Refusal("assignment", "rollback", "older")
    assert take(services, report(refusal, 1)).publish_again == {"cam-1"}
    assert take(services, report(refusal, 2)).publish_again == set()
    batch = [inbound(report(refusal, 3))]
    later = ingest(services.database, services.store, batch, NOW + 31.0)
    assert later.publish_again == {"cam-1"}
    assert [incident.kind for incident in incidents(services)] == ["refused-assignment"]


def test_refused_image_metadata_asks_for_it_again(services):
    outcome = take(services, report(Refusal("image metadata", "bad-signature", "t")))
    assert outcome.metadata_refused
    assert [incident.kind for incident in incidents(services)] == ["refused-metadata"]


def test_what_a_device_says_of_its_own_storage_opens_an_incident_of_that_kind(services):
    take(services, report(Refusal("journal", "damaged", "cannot be read")))
    assert [incident.kind for incident in incidents(services)] == ["device-storage"]


def test_a_device_that_left_its_release_opens_an_incident_of_its_own(services):
    text = "release 2 of digits was left by a person: the door stays shut"
    take(services, report(Refusal("release", "rolled-back-here", text, "a" * 64)))
    (incident,) = incidents(services)
    assert incident.kind == "device-went-back"
    assert "has left its release (rolled-back-here): release 2 of digits" in incident.text
