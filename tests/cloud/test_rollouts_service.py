"""Rollouts on a real database, with devices that follow their orders, fail, or say nothing."""

from pathlib import Path

import pytest
from sqlalchemy import select

from edgefleet_cloud.database.models import (
    Desired,
    DirectorRecord,
    Incident,
    Release,
    Rollout,
    RolloutDevice,
    RolloutState,
    VersionState,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.rollouts import engine, service
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import BUNDLE_BYTES, Fleet

RUNTIMES = ("onnxruntime", "litert")


@pytest.fixture
def fleet(database: Database, store: Store, clock) -> Fleet:
    fleet = Fleet(database, store, clock)
    for version in ("1", "2", "3"):
        fleet.add_version(version)
    fleet.add_devices(12, runtimes=RUNTIMES)
    return fleet


def create(fleet: Fleet, version: str, strategy: str = "canary", **options) -> int:
    with fleet.database.write() as session:
        options.setdefault("to", "all")
        to = options.pop("to")
        return service.create(
            session, fleet.model, version, to, strategy, fleet.clock(), **options
        ).id


def tick(fleet: Fleet, seconds: float = 1.0) -> None:
    fleet.clock.now += seconds
    with fleet.database.write() as session:
        service.advance(session, fleet.clock())


def look(fleet: Fleet, rollout: int) -> dict:
    with fleet.database.read() as session:
        return service.view(session, service.get(session, rollout), fleet.clock())


def states(fleet: Fleet, rollout: int) -> dict[str, str]:
    return {row["device"]: row["state"] for row in look(fleet, rollout)["devices"]}


def install(fleet: Fleet, version: str) -> None:
    """Bring all devices to a version, which then is the previous one."""
    rollout = create(fleet, version, "direct")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"


def serve(
    fleet: Fleet, accuracy: dict[str, float], *, rows: int = 500, labelled: int = 500
) -> None:
    """Let every device report one window of the version that it runs."""
    fleet.windows(
        {
            device: {
                "version": version,
                "rows": rows,
                "labelled": labelled,
                "correct": round(labelled * accuracy[version]),
            }
            for device, version in fleet.running().items()
            if version is not None
        }
    )


def events(fleet: Fleet, rollout: int) -> list[str]:
    return [entry["event"] for entry in look(fleet, rollout)["history"]]


def run(fleet: Fleet, rollout: int, accuracy: dict[str, float], ticks: int = 12) -> None:
    for _ in range(ticks):
        tick(fleet)
        fleet.follow_orders()
        tick(fleet)
        serve(fleet, accuracy)
        if look(fleet, rollout)["state"] != "running":
            return
    raise AssertionError(look(fleet, rollout)["reason"])


# --- going forward --------------------------------------------------------------------------------


def test_a_staged_rollout_reaches_every_device_stage_by_stage(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "staged")
    tick(fleet)
    assert len(fleet.follow_orders()) == 3
    tick(fleet)
    assert look(fleet, rollout)["reason"] == "0 of 500 rows served"
    serve(fleet, {"1": 0.97})
    tick(fleet)
    assert look(fleet, rollout)["stage"] == 1
    assert len(fleet.follow_orders()) == 3
    run(fleet, rollout, {"1": 0.97})
    view = look(fleet, rollout)
    assert view["state"] == RolloutState.COMPLETED
    assert set(fleet.running().values()) == {"1"}
    assert [stage["states"] for stage in view["stages"]] == [
        {"confirmed": 3}, {"confirmed": 3}, {"confirmed": 6},
    ]  # fmt: skip
    assert events(fleet, rollout) == [
        "created", "stage_started", "stage_passed", "stage_started", "stage_passed",
        "stage_started", "stage_passed", "completed",
    ]  # fmt: skip


def test_each_device_gets_the_variant_of_its_runtime(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "canary")
    canary = [row for row in look(fleet, rollout)["devices"] if row["stage"] == 0]
    assert sorted(row["variant"] for row in canary) == ["onnx-int8", "tflite-int8"]


def test_the_third_version_deploys_as_the_second_did(fleet: Fleet) -> None:
    install(fleet, "1")
    for version in ("2", "3"):
        rollout = create(fleet, version)
        run(fleet, rollout, {"1": 0.9, "2": 0.93, "3": 0.95})
        assert look(fleet, rollout)["state"] == "completed"
        assert set(fleet.running().values()) == {version}


def test_a_direct_rollout_is_done_when_all_have_confirmed_though_nothing_was_inferred(
    fleet: Fleet,
) -> None:
    rollout = create(fleet, "1", "direct")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"


def test_a_device_that_lost_its_result_is_confirmed_by_the_hash_that_it_serves(
    fleet: Fleet,
) -> None:
    rollout = create(fleet, "1", "direct")
    tick(fleet)
    fleet.follow_orders(default="confirm-silently")
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"


def test_a_device_that_runs_the_manifest_already_counts_as_confirmed(fleet: Fleet) -> None:
    install(fleet, "1")
    create(fleet, "2", "direct", to="device:cam-00")
    rollout = create(fleet, "1", "direct")
    tick(fleet)
    view = look(fleet, rollout)
    assert {row["reason"] for row in view["devices"] if row["state"] == "confirmed"} == {
        "runs it already"
    }
    with fleet.database.read() as session:
        releases = set(session.scalars(select(Desired.release)))
    assert releases == {view["release"]}


def test_no_device_is_ordered_twice_by_one_rollout(fleet: Fleet) -> None:
    create(fleet, "1", "staged")
    for _ in range(5):
        tick(fleet)
    with fleet.database.read() as session:
        sequences = list(session.scalars(select(DirectorRecord.sequence)))
    assert sequences == [1, 1, 1]


def test_another_process_goes_on_in_the_middle_of_a_stage(fleet: Fleet, tmp_path: Path) -> None:
    rollout = create(fleet, "1", "staged")
    tick(fleet)
    fleet.follow_orders({"cam-00": "silent"})
    tick(fleet)
    fleet.database.close()
    fleet.database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    run(fleet, rollout, {"1": 0.97})
    assert look(fleet, rollout)["state"] == "completed"
    fleet.database.close()


def test_orders_are_given_in_batches(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ORDERS_A_TICK", 5)
    rollout = create(fleet, "1", "direct")
    for ordered in (5, 10, 12):
        tick(fleet)
        assert list(states(fleet, rollout).values()).count("assigned") == ordered
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"


# --- failures -------------------------------------------------------------------------------------


def test_a_canary_that_fails_is_rolled_back_by_a_new_release_of_the_previous_version(
    fleet: Fleet,
) -> None:
    install(fleet, "1")
    rollout = create(fleet, "2")
    tick(fleet)
    canary = fleet.follow_orders(default="fail")
    tick(fleet)
    view = look(fleet, rollout)
    assert view["state"] == "rolling_back"
    assert view["reason"] == "2 of 2 devices failed; at most 20% may"
    with fleet.database.read() as session:
        newest = session.get_one(Release, (fleet.model, view["reverts_to"]))
        assert (newest.number, newest.version_id) == (3, 1)
        ordered = select(Desired.device_id).where(Desired.release == 3)
        assert sorted(session.scalars(ordered)) == canary
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "rolled_back"
    assert set(fleet.running().values()) == {"1"}
    with fleet.database.read() as session:
        assert session.scalar(select(Incident)) is None


def test_a_drop_of_accuracy_at_the_canary_rolls_back_with_the_figures_in_the_history(
    fleet: Fleet,
) -> None:
    install(fleet, "1")
    rollout = create(fleet, "2")
    tick(fleet)
    canary = fleet.follow_orders()
    tick(fleet)
    serve(fleet, {"1": 0.95, "2": 0.60})
    tick(fleet)
    view = look(fleet, rollout)
    assert view["state"] == "rolling_back"
    assert view["history"][-1]["devices"] == canary
    statistics = view["history"][-1]["statistics"]
    assert statistics["stage"]["accuracy"] == 0.6
    assert statistics["control"]["accuracy"] == 0.95
    assert statistics["stage"]["labelled"] == 1000
    assert statistics["control"]["labelled"] == 5000
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "rolled_back"
    assert set(fleet.running().values()) == {"1"}
    assert set(states(fleet, rollout).values()) == {"reverted", "skipped"}


def test_a_small_loss_on_few_rows_waits_for_more(fleet: Fleet) -> None:
    install(fleet, "1")
    rollout = create(fleet, "2")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    serve(fleet, {"1": 0.95, "2": 0.90}, labelled=40)
    tick(fleet)
    view = look(fleet, rollout)
    assert view["state"] == "running"
    assert "too few rows to be sure" in view["reason"]
    serve(fleet, {"1": 0.95, "2": 0.90}, rows=2000, labelled=2000)
    tick(fleet)
    assert look(fleet, rollout)["state"] == "rolling_back"


def test_a_silent_device_fails_exactly_at_the_deadline(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct", to="device:cam-00", gate={"silence_s": 60})
    tick(fleet)
    tick(fleet, 59)
    assert states(fleet, rollout) == {"cam-00": "assigned"}
    tick(fleet, 1)
    view = look(fleet, rollout)
    assert view["history"][2]["text"] == "cam-00: no progress for 60 s"
    assert view["state"] == "rolling_back"


def test_progress_moves_the_deadline(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct", to="device:cam-00", gate={"silence_s": 60})
    tick(fleet)
    fleet.clock.now += 50
    fleet.follow_orders(default="fetch")
    tick(fleet)
    assert look(fleet, rollout)["devices"][0]["step"] == "fetching"
    tick(fleet, 59.5)
    assert states(fleet, rollout) == {"cam-00": "assigned"}
    tick(fleet, 0.5)
    assert states(fleet, rollout) == {"cam-00": "reverting"}


def test_a_device_that_says_what_it_waits_for_is_not_silent(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct", to="device:cam-00", gate={"silence_s": 60})
    tick(fleet)
    for _ in range(3):
        fleet.clock.now += 50
        fleet.follow_orders(default="wait")
        tick(fleet)
    (part,) = look(fleet, rollout)["devices"]
    assert (part["state"], part["reason"]) == ("assigned", "waits for the maintenance window")
    tick(fleet, 58.5)  # the tick after it was heard took one second
    assert states(fleet, rollout) == {"cam-00": "assigned"}
    tick(fleet, 0.5)
    assert states(fleet, rollout) == {"cam-00": "reverting"}


def test_a_device_that_failed_stays_failed_when_its_late_confirmation_comes(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct", gate={"silence_s": 60, "max_failed_share": 0.5})
    tick(fleet)
    fleet.follow_orders({"cam-00": "silent"})
    tick(fleet, 60)
    assert look(fleet, rollout)["state"] == "completed"
    fleet.follow_orders()
    tick(fleet)
    assert states(fleet, rollout)["cam-00"] == "failed"


def test_few_failures_do_not_stop_a_stage(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct")
    tick(fleet)
    fleet.follow_orders({"cam-00": "fail", "cam-01": "fail"})
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"
    assert events(fleet, rollout).count("device_failed") == 2


def test_without_a_previous_version_the_model_is_taken_off(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "canary")
    tick(fleet)
    fleet.follow_orders(default="fail")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    view = look(fleet, rollout)
    assert (view["state"], view["reverts_to"]) == ("rolled_back", None)
    with fleet.database.read() as session:
        assert session.scalar(select(Desired)) is None


def test_another_variant_of_the_same_version_goes_back_to_the_one_before(fleet: Fleet) -> None:
    number = fleet.add_version("4")
    fleet.add_variant(number, "4", "onnxruntime", "onnx-fp32")
    install(fleet, "4")
    with fleet.database.read() as session:
        before = {row.device_id: row.variant for row in session.scalars(select(Desired))}
    device = next(name for name, variant in before.items() if variant.startswith("onnx"))
    other = {"onnx-int8": "onnx-fp32", "onnx-fp32": "onnx-int8"}[before[device]]
    rollout = create(fleet, "4", "direct", to=f"device:{device}", variant=other)
    tick(fleet)
    fleet.follow_orders(default="fail")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "rolled_back"
    assert fleet.running()[device] == "4"
    with fleet.database.read() as session:
        assert {row.device_id: row.variant for row in session.scalars(select(Desired))} == before


def test_a_device_silent_in_a_rollback_is_named_in_an_incident_until_it_is_back(
    fleet: Fleet,
) -> None:
    install(fleet, "1")
    rollout = create(fleet, "2", gate={"silence_s": 60})
    tick(fleet)
    canary = fleet.follow_orders()
    tick(fleet)
    serve(fleet, {"1": 0.95, "2": 0.10})
    tick(fleet)
    fleet.follow_orders({canary[0]: "silent"})
    tick(fleet)
    assert look(fleet, rollout)["state"] == "rolling_back"
    tick(fleet, 60)
    assert look(fleet, rollout)["state"] == "rolled_back"
    with fleet.database.read() as session:
        incident = session.scalar(select(Incident).where(Incident.kind == "rollback"))
        assert incident is not None
        assert (incident.devices, incident.closed_at) == ([canary[0]], None)
    fleet.follow_orders()
    tick(fleet)
    with fleet.database.read() as session:
        assert session.get_one(Incident, incident.id).closed_at == fleet.clock()
    assert states(fleet, rollout)[canary[0]] == "reverted"


def test_a_device_under_a_device_fault_neither_leads_nor_judges(fleet: Fleet) -> None:
    install(fleet, "1")
    plan = create(fleet, "2")
    broken = look(fleet, plan)["stages"][0]["devices"][0]
    with fleet.database.write() as session:
        service.cancel(session, plan, fleet.clock())
        session.add(
            Incident(
                model=fleet.model,
                kind="device-fault",
                scope="device",
                devices=[broken],
                features=[],
                text="stuck",
                opened_at=fleet.clock(),
            )
        )
    rollout = create(fleet, "2")
    assert broken in look(fleet, rollout)["stages"][-1]["devices"]
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    serve(fleet, {"1": 0.95, "2": 0.95})
    tick(fleet)
    passed = look(fleet, rollout)["history"][-2]
    assert passed["event"] == "stage_passed"
    assert passed["statistics"]["control"]["devices"] == 9


# --- steering -------------------------------------------------------------------------------------


def test_a_newer_rollout_takes_over_what_the_older_one_has_not_finished(fleet: Fleet) -> None:
    older = create(fleet, "1", "staged")
    tick(fleet)
    newer = create(fleet, "2", "direct")
    assert look(fleet, older)["state"] == "cancelled"
    assert look(fleet, older)["reason"] == f"superseded by rollout {newer}"
    tick(fleet)
    assert set(states(fleet, newer).values()) == {"assigned"}
    fleet.follow_orders()
    tick(fleet)
    assert set(fleet.running().values()) == {"2"}


def test_a_newer_rollout_leaves_the_other_devices_to_the_older_one(fleet: Fleet) -> None:
    older = create(fleet, "1", "direct")
    tick(fleet)
    create(fleet, "2", "direct", to="device:cam-00,cam-01")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, older)["state"] == "completed"
    running = fleet.running()
    assert [running["cam-00"], running["cam-02"]] == ["2", "1"]


def test_a_rollback_leaves_devices_alone_that_another_rollout_has_ordered(fleet: Fleet) -> None:
    install(fleet, "1")
    bad = create(fleet, "2", "direct")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    create(fleet, "3", "direct", to="device:cam-00")
    tick(fleet)
    with fleet.database.write() as session:
        service.roll_back(session, bad, "wrong labels", fleet.clock())
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, bad)["state"] == "rolled_back"
    running = fleet.running()
    assert running.pop("cam-00") == "3"
    assert set(running.values()) == {"1"}


def test_a_device_taken_over_while_it_goes_back_does_not_hold_up_the_rollback(
    fleet: Fleet,
) -> None:
    install(fleet, "1")
    bad = create(fleet, "2", "direct")
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    with fleet.database.write() as session:
        service.roll_back(session, bad, "", fleet.clock())
    create(fleet, "3", "direct")
    tick(fleet)
    tick(fleet)
    assert look(fleet, bad)["state"] == "rolled_back"
    fleet.follow_orders()
    assert set(fleet.running().values()) == {"3"}


def test_a_paused_rollout_orders_nobody_and_goes_on_when_resumed(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "staged")
    with fleet.database.write() as session:
        service.pause(session, rollout, fleet.clock())
    tick(fleet)
    assert fleet.follow_orders() == []
    with fleet.database.write() as session:
        service.resume(session, rollout, fleet.clock())
    run(fleet, rollout, {"1": 0.9})
    assert look(fleet, rollout)["state"] == "completed"


def test_resuming_tries_failed_devices_again(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct", gate={"on_breach": "pause"})
    tick(fleet)
    fleet.follow_orders(default="fail")
    tick(fleet)
    assert look(fleet, rollout)["state"] == "paused"
    with fleet.database.write() as session:
        service.resume(session, rollout, fleet.clock(), gate={"max_failed_share": 0.5})
    tick(fleet)
    assert len(fleet.follow_orders()) == 12
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"


def test_cancelling_leaves_what_was_ordered(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "staged")
    tick(fleet)
    with fleet.database.write() as session:
        service.cancel(session, rollout, fleet.clock())
    assert sorted(states(fleet, rollout).values()) == ["assigned"] * 3 + ["skipped"] * 9
    with fleet.database.read() as session:
        assert len(list(session.scalars(select(Desired)))) == 3


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_finished_rollout_cannot_be_steered(fleet: Fleet, action: str) -> None:
    install(fleet, "1")
    with fleet.database.write() as session, pytest.raises(ConflictError, match="is completed"):
        getattr(service, action)(session, 1, fleet.clock())


def test_a_completed_rollout_can_be_rolled_back_by_an_operator(fleet: Fleet) -> None:
    install(fleet, "1")
    install(fleet, "2")
    with fleet.database.write() as session:
        service.roll_back(session, 2, "complaints", fleet.clock())
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, 2)["state"] == "rolled_back"
    assert set(fleet.running().values()) == {"1"}


# --- creation -------------------------------------------------------------------------------------


def test_a_preview_shows_what_would_happen_and_does_nothing(fleet: Fleet) -> None:
    fleet.add_version("4", state=VersionState.REGISTERED)
    with fleet.database.read() as session:
        plan = service.preview(session, fleet.model, "4", "all", "canary", fleet.clock())
    assert [len(stage.devices) for stage in plan.stages] == [2, 4, 6]
    assert plan.transfer_bytes == 12 * BUNDLE_BYTES
    with fleet.database.read() as session:
        assert session.scalar(select(Rollout)) is None
        assert session.scalar(select(Release)) is None


def test_the_preview_and_the_rollout_have_the_same_stages(fleet: Fleet) -> None:
    with fleet.database.read() as session:
        plan = service.preview(session, fleet.model, "1", "all", "canary", fleet.clock())
    rollout = create(fleet, "1")
    assert [stage["devices"] for stage in look(fleet, rollout)["stages"]] == [
        [device.device for device in stage.devices] for stage in plan.stages
    ]


def test_what_the_device_holds_already_travels_for_nothing(fleet: Fleet) -> None:
    install(fleet, "1")
    with fleet.database.read() as session:
        plan = service.preview(session, fleet.model, "1", "all", "direct", fleet.clock())
    assert plan.transfer_bytes == 0


def test_a_device_without_a_fitting_variant_is_skipped_with_the_reason(fleet: Fleet) -> None:
    fleet.add_devices(1, runtimes=("tensorrt",))
    rollout = create(fleet, "1", "direct")
    row = look(fleet, rollout)["devices"][-1]
    assert (row["device"], row["state"]) == ("cam-12", "skipped")
    assert row["reason"] == (
        "onnx-int8: needs runtime onnxruntime; the device has tensorrt 1.30;"
        " tflite-int8: needs runtime litert; the device has tensorrt 1.30"
    )


def test_a_second_group_gets_the_release_that_is_there(fleet: Fleet) -> None:
    first = create(fleet, "1", "direct", to="device:cam-00")
    second = create(fleet, "1", "direct", to="device:cam-01")
    assert look(fleet, first)["release"] == look(fleet, second)["release"] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gate": {"max_failed_share": float("nan")}}, "gate: max_failed_share is nan"),
        ({"gate": {"max_failed_shares": 0.1}}, "gate: Object contains unknown field"),
        ({"gate": {"max_error_rate": "low"}}, "gate: Expected `float`"),
        ({"gate": {"silence_s": 0}}, "gate: Expected `float` > 0"),
        ({"order": {"windowrows": 5}}, "order: Object contains unknown field"),
        ({"stages": [0.5, 0.4, 1]}, "expected cumulative shares rising to 1"),
        ({"stages": [0.5]}, "expected cumulative shares rising to 1"),
        ({"to": "label:site=moon"}, "has no enrolled device"),
        ({"strategy": "yolo"}, "strategy 'yolo': expected one of direct, staged, canary"),
        ({"variant": "onnx-int4"}, "has no variant 'onnx-int4'"),
    ],
)
def test_what_cannot_be_read_is_refused_at_creation(fleet: Fleet, options: dict, text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        create(fleet, "1", **options)
    with fleet.database.read() as session:
        assert session.scalar(select(Release)) is None


def test_only_an_approved_version_is_rolled_out(fleet: Fleet) -> None:
    fleet.add_version("4", state=VersionState.REFUSED)
    with pytest.raises(ConflictError, match="digits 4 is refused"):
        create(fleet, "4")
    with pytest.raises(NotFoundError, match="there is no version 'digits 9'"):
        create(fleet, "9")


def test_a_rollout_that_cannot_go_on_pauses_and_does_not_hold_up_the_others(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = create(fleet, "1", "direct", to="device:cam-00")
    whole = create(fleet, "1", "direct", to="device:cam-01")
    read = engine.figures.read

    def fail_for_one(session, rollout):
        if rollout.id == broken:
            raise NotFoundError("stored file", "x")
        return read(session, rollout)

    monkeypatch.setattr(engine.figures, "read", fail_for_one)
    tick(fleet)
    assert look(fleet, broken)["state"] == "paused"
    assert look(fleet, broken)["reason"] == "cannot go on: there is no stored file 'x'"
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, whole)["state"] == "completed"


def test_a_revoked_device_is_skipped_and_the_others_go_on(fleet: Fleet) -> None:
    rollout = create(fleet, "1", "direct")
    with fleet.database.write() as session:
        part = session.get_one(RolloutDevice, (rollout, "cam-03"))
        assert part.state == "waiting"
        session.execute(
            Rollout.metadata.tables["devices"]
            .update()
            .values(state="revoked")
            .where(Rollout.metadata.tables["devices"].c.id == "cam-03")
        )
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert look(fleet, rollout)["state"] == "completed"
    assert states(fleet, rollout)["cam-03"] == "skipped"
