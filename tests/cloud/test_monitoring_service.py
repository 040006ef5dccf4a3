"""Windows in a real database → watches, verdicts and incidents."""

import numpy as np
import pytest
from sqlalchemy import select

from edgefleet_cloud.database.models import Incident, Verdict, Watch
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.monitoring import incidents, service
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import Fleet
from edgefleet_protocol import sketch
from edgefleet_protocol.sketch import ReferenceProfile

WIDTH = 4
WINDOW_S = 5.0


class Sensors:
    """A fleet whose devices report windows of normal values."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.rng = np.random.default_rng(1)
        training = self.rng.normal(size=(2000, WIDTH))
        self.features = [sketch.numeric_feature(f"p{i}", training[:, i]) for i in range(WIDTH)]
        profile = ReferenceProfile(
            2000,
            self.features,
            sketch.pack_counts(sketch.count_rows(self.features, training), self.features),
            sketch.pack_moments(sketch.moments_of(training)),
        )
        self.reference = sketch.encode_profile(profile)

    def report(self, version: str = "1", rows: int = 600, **shift: float | str) -> list[Verdict]:
        """Let every device report a window, some shifted or "stuck", and evaluate it."""
        self.fleet.clock.now += WINDOW_S
        with self.fleet.database.read() as session:
            digest = service.registry.get_version(session, "digits", version).reference
        windows = {}
        for device in self.fleet.running():
            values = self.rng.normal(size=(rows, WIDTH))
            change = shift.get(device.replace("-", "_"), 0.0)
            values = np.zeros_like(values) if change == "stuck" else values + float(change)
            windows[device] = {
                "version": version,
                "reference": digest,
                "rows": rows,
                "counts": sketch.pack_counts(
                    sketch.count_rows(self.features, values), self.features
                ),
                "moments": sketch.pack_moments(sketch.moments_of(values)),
                "labelled": 100,
                "correct": 90,
                "psi": [0.1] * WIDTH,
            }
        self.fleet.windows(windows)
        return self.evaluate()

    def evaluate(self) -> list[Verdict]:
        with self.fleet.database.write() as session:
            return service.evaluate(session, self.fleet.store, self.fleet.clock())

    def open(self) -> list[tuple[str, str, list[str]]]:
        with self.fleet.database.read() as session:
            found = incidents.list_incidents(session, only_open=True)
            return sorted((i.kind, i.scope, i.devices) for i in found)

    def states(self, version: str = "1") -> list[str]:
        with self.fleet.database.read() as session:
            query = select(Watch.state).where(Watch.version == version).order_by(Watch.device_id)
            return list(session.scalars(query))


@pytest.fixture
def sensors(database: Database, store: Store, clock) -> Sensors:
    fleet = Fleet(database, store, clock)
    sensors = Sensors(fleet)
    fleet.add_version("1", reference=sensors.reference)
    fleet.add_version("2", reference=sensors.reference + b"")
    fleet.add_devices(6)
    return sensors


ALL = {f"cam_{i:02}": 1.0 for i in range(6)}
FLEET = [f"cam-{i:02}" for i in range(6)]


def test_a_steady_fleet_gets_one_verdict_and_no_incident(sensors: Sensors) -> None:
    assert [verdict.scope for verdict in sensors.report()] == ["none"]
    assert sensors.states() == ["learning"] * 6
    assert sensors.report() == []
    assert sensors.report() == []
    assert sensors.states() == ["steady"] * 6
    assert sensors.open() == []


def test_drift_of_the_fleet_opens_one_incident_that_closes_when_it_is_over(
    sensors: Sensors,
) -> None:
    for _ in range(3):
        sensors.report()
    assert sensors.report(**ALL) == []
    (verdict,) = sensors.report(**ALL)
    assert (verdict.scope, verdict.devices) == ("fleet", 6)
    assert sensors.open() == [("drift", "fleet", FLEET)]
    assert sensors.report(**ALL) == []
    for _ in range(3):
        sensors.report()
    assert sensors.open() == []
    with sensors.fleet.database.read() as session:
        (incident,) = session.scalars(select(Incident))
        assert incident.closed_at == sensors.fleet.clock()
        assert service.newest_verdict(session, "digits", "1").findings == []


def test_a_restart_loses_and_repeats_nothing(sensors: Sensors) -> None:
    for _ in range(3):
        sensors.report()
    assert sensors.evaluate() == []
    sensors.report(**ALL)
    with sensors.fleet.database.read() as session:
        before = {w.device_id: w.rows for w in session.scalars(select(Watch))}
    sensors.fleet.database = Database(sensors.fleet.database.url)
    service._profiles.cache_clear()
    assert sensors.evaluate() == []
    (verdict,) = sensors.report(**ALL)
    assert verdict.scope == "fleet"
    assert set(before.values()) == {4 * 600}
    sensors.fleet.database.close()


def test_windows_beyond_one_tick_are_taken_in_the_next(
    sensors: Sensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WINDOWS_A_TICK", 4)
    sensors.report()
    with sensors.fleet.database.read() as session:
        assert len(list(session.scalars(select(Watch)))) == 4
    sensors.evaluate()
    with sensors.fleet.database.read() as session:
        assert [w.rows for w in session.scalars(select(Watch))] == [600] * 6


def test_many_windows_of_one_device_in_one_tick_are_judged_one_after_the_other(
    sensors: Sensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WINDOWS_A_TICK", 0)
    for _ in range(3):
        sensors.report()
    sensors.report(**ALL)
    sensors.report(**ALL)
    monkeypatch.setattr(service, "WINDOWS_A_TICK", 100)
    (verdict,) = sensors.evaluate()
    assert verdict.scope == "fleet"


def test_a_stuck_device_is_a_fault_beside_the_drift_of_the_others(sensors: Sensors) -> None:
    for _ in range(3):
        sensors.report()
    for _ in range(2):
        sensors.report(**{**ALL, "cam_05": "stuck"})
    assert sensors.open() == [
        ("device-fault", "device", ["cam-05"]),
        ("drift", "fleet", FLEET[:5]),
    ]


def test_a_fault_outlives_the_version_until_the_device_is_sound_on_a_newer_one(
    sensors: Sensors,
) -> None:
    for _ in range(3):
        sensors.report()
    for _ in range(2):
        sensors.report(cam_05="stuck")
    fault = [("device-fault", "device", ["cam-05"])]
    assert sensors.open() == fault
    for _ in range(2):
        sensors.report("2", cam_05="stuck")
    assert sensors.open() == fault
    for _ in range(4):
        sensors.report("2")
    assert sensors.open() == []


def test_what_was_said_of_a_version_closes_when_no_device_reports_on_it(sensors: Sensors) -> None:
    for _ in range(3):
        sensors.report()
    for _ in range(2):
        sensors.report(**ALL)
    sensors.fleet.clock.now += 5 * WINDOW_S + 59
    sensors.evaluate()
    assert len(sensors.open()) == 1
    sensors.fleet.clock.now += 2
    sensors.evaluate()
    assert sensors.open() == []


def test_closing_a_drift_by_hand_makes_the_devices_learn_anew(sensors: Sensors) -> None:
    for _ in range(3):
        sensors.report()
    for _ in range(2):
        sensors.report(**ALL)
    with sensors.fleet.database.write() as session:
        incidents.close(session, 1, sensors.fleet.clock())
        with pytest.raises(ConflictError, match="closed already"):
            incidents.close(session, 1, sensors.fleet.clock())
        with pytest.raises(NotFoundError):
            incidents.close(session, 9, sensors.fleet.clock())
    for _ in range(4):
        sensors.report(**ALL)
    assert [kind for kind, _, _ in sensors.open()] == ["unlike-training"]
    assert sensors.states() == ["unlike"] * 6


def test_a_note_on_unlike_training_does_not_come_back_when_closed(sensors: Sensors) -> None:
    for _ in range(4):
        sensors.report(**ALL)
    assert sensors.open() == [("unlike-training", "fleet", FLEET)]
    with sensors.fleet.database.write() as session:
        incidents.close(session, 1, sensors.fleet.clock())
    for _ in range(3):
        sensors.report(**ALL)
    assert sensors.open() == []


def test_a_window_that_does_not_fit_is_counted_and_said_and_never_fine(sensors: Sensors) -> None:
    sensors.fleet.windows({"cam-00": {"version": "1", "rows": 500}})
    sensors.fleet.windows({"cam-01": {"version": "77", "rows": 500}})
    sensors.evaluate()
    sensors.fleet.windows({"cam-00": {"version": "1", "rows": 500}})
    sensors.evaluate()
    assert [kind for kind, _, _ in sensors.open()] == ["malformed-report"] * 2
    with sensors.fleet.database.read() as session:
        watch = session.get_one(Watch, ("cam-00", "digits", "1"))
        assert (watch.malformed, watch.rows) == (2, 0)
        texts = sorted(session.scalars(select(Incident.text)))
    assert texts[0].startswith("device cam-00: 2 window reports cannot be used")
    assert texts[1].endswith("there is no version '77' of 'digits'")


def test_a_damaged_profile_is_no_reason_to_call_windows_fine(sensors: Sensors) -> None:
    sensors.fleet.add_version("3", reference=b"damaged")
    sensors.fleet.windows({"cam-00": {"version": "3"}})
    assert sensors.evaluate() == []
    assert sensors.open() == [("malformed-report", "device", ["cam-00"])]


def test_the_drift_view_names_devices_and_features(sensors: Sensors) -> None:
    for _ in range(3):
        sensors.report()
    for _ in range(2):
        sensors.report(**{**ALL, "cam_05": "stuck"})
    with sensors.fleet.database.write() as session:
        service.registry.release(session, "digits", "1", "test", 0.0)
        view = service.drift(session, sensors.fleet.store, "digits", None, sensors.fleet.clock())
    assert view["version"] == "1"
    assert view["features"] == ["p0", "p1", "p2", "p3"]
    first, *_, last = view["devices"]
    assert (first["state"], first["shifted"]) == ("shifted", view["features"])
    assert (last["state"], last["stuck"]) == ("stuck", view["features"])
    assert first["psi"] == [0.1] * WIDTH
    assert view["verdict"]["scope"] == "fleet"


def test_the_drift_view_needs_a_version(sensors: Sensors) -> None:
    with sensors.fleet.database.read() as session:
        with pytest.raises(NotFoundError, match="there is no released version of model"):
            service.drift(session, sensors.fleet.store, "digits", None, 0.0)
        with pytest.raises(NotFoundError, match="there is no version"):
            service.drift(session, sensors.fleet.store, "digits", "9", 0.0)


def test_performance_adds_up_by_version_and_time(sensors: Sensors) -> None:
    start = sensors.fleet.clock.now = 1_000_000.0
    for version in ("1", "1", "2"):
        sensors.report(version)
    with sensors.fleet.database.read() as session:
        rows = service.performance(session, "digits", bucket_s=10)
        late = service.performance(session, "digits", since=start + 15, bucket_s=10)
        single = service.performance(session, "digits", by_device=True, bucket_s=100)
        assert service.performance(session, "unknown") == []
    assert [(r["version"], r["at"], r["rows"], r["accuracy"]) for r in rows] == [
        ("1", start, 3600, 0.9),
        ("1", start + 10, 3600, 0.9),
        ("2", start + 10, 3600, 0.9),
    ]
    assert [row["version"] for row in late] == ["2"]
    assert len(single) == 12
    assert single[0] == {
        "version": "1", "at": start, "device": "cam-00", "devices": 1, "rows": 1200, "errors": 0,
        "labelled": 200, "correct": 180, "accuracy": 0.9,
    }  # fmt: skip
