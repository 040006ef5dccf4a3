"""From drift and samples to a challenger, a decision and a rollout."""

import numpy as np
import pytest
from sqlalchemy import select

from edgefleet_cloud.database.models import (
    Dataset,
    Incident,
    Job,
    JobState,
    Release,
    Retraining,
    Rollout,
    Run,
    SampleRecord,
    Verdict,
    Version,
    VersionState,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.datasets import content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import InvalidError, NotFoundError
from edgefleet_cloud.jobs.worker import Task, perform
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.retraining import samples, service
from edgefleet_cloud.rollouts import awaited
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import Fleet
from edgefleet_cloud.training import outcome
from edgefleet_cloud.training import service as training
from edgefleet_cloud.trust.people import approvals, tokens
from edgefleet_cloud.trust.people.testing import account
from edgefleet_converters.tables import Table
from edgefleet_protocol import sketch
from edgefleet_protocol.sketch import ReferenceProfile

RECIPE = {
    "trainer": "sklearn",
    "parameters": {"estimator": "LogisticRegression"},
    "min_samples": 100,
    "min_gain": 0.05,
    "seed": 7,
}
RNG = np.random.default_rng(1)


def rows(count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes told apart by the first of three features, around `shift`."""
    values = RNG.normal(shift, 1.0, (count, 3)).astype(np.float32)
    return values, (values[:, 0] > shift).astype(int)


def table(values: np.ndarray, labels: np.ndarray) -> Table:
    columns = {f"p{i}": values[:, i].astype(np.float64) for i in range(3)}
    return Table("test", {**columns, "label": labels.astype(np.float64)})


def add_dataset(fleet: Fleet, name: str, count: int) -> str:
    prepared = content.prepare(fleet.store, table(*rows(count)), "label")
    with fleet.database.write() as session:
        return datasets.add(session, prepared, name=name, source="test", now=0.0).digest


@pytest.fixture
def fleet(database: Database, store: Store, clock) -> Fleet:
    fleet = Fleet(database, store, clock)
    values, _ = rows(400)
    features = [sketch.numeric_feature(f"p{i}", values[:, i]) for i in range(3)]
    profile = ReferenceProfile(
        400,
        features,
        sketch.pack_counts(sketch.count_rows(features, values), features),
        sketch.pack_moments(sketch.moments_of(values)),
    )
    fleet.add_version("1", reference=sketch.encode_profile(profile))
    fleet.add_devices(4)
    base, holdout = add_dataset(fleet, "base", 300), add_dataset(fleet, "holdout", 100)
    with fleet.database.write() as session:
        run = session.get_one(Run, 1)
        run.dataset, run.holdout = base, holdout
        rollouts.create(
            session, "digits", "1", "all", "direct", fleet.clock(), order={"window_rows": 250}
        )
    return fleet


def drift(fleet: Fleet, since: float | None = None) -> None:
    """Open a drift incident of the fleet on version 1, and say since when."""
    fleet.clock.now += 10
    now = fleet.clock()
    finding = {"kind": "shift", "scope": "fleet", "since": now - 5 if since is None else since}
    with fleet.database.write() as session:
        session.add(
            Incident(
                model="digits", version="1", kind="drift", scope="fleet", devices=["cam-00"],
                features=["p0"], text="drift", opened_at=now,
            )
        )  # fmt: skip
        session.add(
            Verdict(
                model="digits", version="1", at=now, scope="fleet", findings=[finding], rows=1,
                devices=4,
            )
        )  # fmt: skip


def send(fleet: Fleet, device: str, count: int, shift: float = 3.0) -> None:
    values, labels = rows(count, shift)
    fleet.samples(device, "1", values, [str(label) for label in labels])


def add_trigger(fleet: Fleet, **changes) -> None:
    with fleet.database.write() as session:
        service.add_trigger(session, "digits", RECIPE | changes, 0.0)


def check(fleet: Fleet) -> list[Retraining]:
    fleet.clock.now += 1
    with fleet.database.write() as session:
        return service.check(session, fleet.store, fleet.clock())


def comparison(gain: float = 0.2, better: int = 30) -> dict:
    return {
        "champion": "1", "challenger": "2", "champion_variant": "onnx-int8",
        "challenger_variant": "onnx-int8", "holdout": "0" * 64, "rows": 100,
        "champion_score": 0.6, "challenger_score": 0.6 + gain, "champion_only": 2,
        "challenger_only": better, "gain": gain, "gain_se": 0.05,
    }  # fmt: skip


def finish(fleet: Fleet, result: dict | None, error: str = "") -> Retraining:
    """End the job as the runner would, and conclude."""
    if result is not None:
        fleet.add_version("2", state=VersionState.REGISTERED)
    with fleet.database.write() as session:
        job = session.scalars(select(Job).order_by(Job.id.desc())).first()
        assert job is not None
        job.state = JobState.SUCCEEDED if result is not None else JobState.FAILED
        job.result, job.error = {"version": "2", **(result or {})}, error or None
    with fleet.database.write() as session:
        (ended,) = service.conclude(session, fleet.clock())
    return ended


# --- starting -------------------------------------------------------------------------------------


def test_drift_and_enough_samples_start_one_retraining(fleet: Fleet) -> None:
    add_trigger(fleet)
    assert check(fleet) == []
    drift(fleet)
    assert check(fleet) == []
    send(fleet, "cam-00", 99)
    assert check(fleet) == []
    send(fleet, "cam-01", 1)
    (made,) = check(fleet)
    assert (made.champion, made.trigger_id, made.incident_id) == ("1", 1, 1)
    assert check(fleet) == []
    with fleet.database.read() as session:
        job = session.get_one(Job, made.job_id)
        assert job.kind == "retrain"
        assert job.arguments["champion"]["version"] == "1"
        assert job.arguments["guard"] is None


def known_recipes(fleet: Fleet, count: int) -> None:
    """Let the hub know by what the first variants of version 1 were made; the first is for rpi4."""
    with fleet.database.write() as session:
        version = registry.get_version(session, "digits", "1")
        for number, variant in enumerate(registry.variants(session, version.id)[:count]):
            boards = {"boards": ["rpi4"]} if number == 0 else {}
            variant.recipe, variant.needs = f"recipe {number}", {**variant.needs, **boards}


@pytest.mark.parametrize(
    ("known", "variants", "expected"),
    [
        (
            2,
            None,
            [{"recipe": "recipe 0", "boards": ["rpi4"]}, {"recipe": "recipe 1", "boards": []}],
        ),
        (1, None, []),
        (2, ["onnx-fp32"], []),
    ],
)
def test_a_challenger_is_made_like_the_champion_unless_told_otherwise_or_that_is_not_known(
    fleet: Fleet, known: int, variants: list[str] | None, expected: list[dict]
) -> None:
    known_recipes(fleet, known)
    send(fleet, "cam-00", 200)
    with fleet.database.write() as session:
        made = service.start(
            session, fleet.store, "digits", RECIPE | {"variants": variants}, fleet.clock()
        )
    with fleet.database.read() as session:
        arguments = session.get_one(Job, made.job_id).arguments
    assert (arguments["recipes"], arguments["variants"]) == (expected, variants)


def test_the_trigger_fires_again_for_another_incident_only(fleet: Fleet) -> None:
    add_trigger(fleet)
    drift(fleet)
    send(fleet, "cam-00", 200)
    assert len(check(fleet)) == 1
    finish(fleet, {"comparison": comparison(gain=0.0, better=2)})
    assert check(fleet) == []
    with fleet.database.write() as session:
        session.get_one(Incident, 1).closed_at = fleet.clock()
    drift(fleet)
    send(fleet, "cam-00", 200)
    assert len(check(fleet)) == 1


def test_samples_from_before_the_drift_and_of_faulty_devices_are_not_used(fleet: Fleet) -> None:
    add_trigger(fleet)
    send(fleet, "cam-00", 500)
    drift(fleet)
    send(fleet, "cam-01", 150)
    send(fleet, "cam-02", 500)
    with fleet.database.write() as session:
        session.add(
            Incident(
                model="digits", kind="device-fault", scope="device", devices=["cam-02"],
                features=[], text="stuck", opened_at=fleet.clock(),
            )
        )  # fmt: skip
    (made,) = check(fleet)
    assert made.reason == "150 field rows; 0 batches left out"
    with fleet.database.read() as session:
        used = session.scalars(select(SampleRecord).where(SampleRecord.dataset.is_not(None)))
        assert [record.device_id for record in used] == ["cam-01"]


def test_the_drift_began_when_the_verdict_says_not_when_it_was_confirmed(fleet: Fleet) -> None:
    add_trigger(fleet)
    send(fleet, "cam-00", 150)
    drift(fleet, since=fleet.clock())
    assert len(check(fleet)) == 1


def test_a_disabled_trigger_starts_nothing(fleet: Fleet) -> None:
    add_trigger(fleet)
    with fleet.database.write() as session:
        service.disable_trigger(session, 1, 0.0)
        with pytest.raises(NotFoundError):
            service.disable_trigger(session, 2, 0.0)
    drift(fleet)
    send(fleet, "cam-00", 200)
    assert check(fleet) == []


def test_a_trigger_that_cannot_start_is_logged_and_does_not_stop_the_others(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    add_trigger(fleet, base=["no-such-dataset"])
    add_trigger(fleet)
    drift(fleet)
    send(fleet, "cam-00", 200)
    (made,) = check(fleet)
    assert made.trigger_id == 2
    assert "trigger 1 of digits could not start" in caplog.text


def test_the_datasets_keep_their_parents_and_share_no_row(fleet: Fleet) -> None:
    add_trigger(fleet)
    drift(fleet)
    send(fleet, "cam-00", 200)
    (made,) = check(fleet)
    with fleet.database.read() as session:
        arguments = session.get_one(Job, made.job_id).arguments
        train = session.get_one(Dataset, arguments["dataset"])
        holdout = session.get_one(Dataset, arguments["holdout"])
        field = session.get_one(Dataset, holdout.parents[0])
        base = session.get_one(Run, 1).dataset
    assert train.parents == [base, field.digest]
    assert (train.rows, holdout.rows, field.rows) == (300 + 140, 60, 200)
    kept = [content.read(fleet.store, d.digest).column("p0") for d in (train, holdout)]
    assert not set(kept[0]) & set(kept[1])


def test_equal_rows_count_once(fleet: Fleet) -> None:
    values, labels = rows(50)
    for _ in range(4):
        fleet.samples("cam-00", "1", values, [str(label) for label in labels])
    with (
        fleet.database.write() as session,
        pytest.raises(InvalidError, match="50 different readable rows; the recipe needs 100"),
    ):
        service.start(session, fleet.store, "digits", RECIPE, fleet.clock())


def test_batches_that_cannot_be_read_are_left_out_and_counted(fleet: Fleet) -> None:
    send(fleet, "cam-00", 150)
    values, _ = rows(10)
    fleet.samples("cam-01", "1", values[:, :2], ["0"] * 10)
    fleet.samples("cam-02", "1", values, ["zero"] * 10)
    fleet.samples("cam-03", "1", values, ["nan"] * 10)
    fleet.samples("cam-03", "1", values, ["0"] * 9)
    with fleet.database.write() as session:
        made = service.start(session, fleet.store, "digits", RECIPE, fleet.clock())
    assert made.reason == "150 field rows; 4 batches left out"


def test_categories_come_back_as_words() -> None:
    feature = sketch.Feature("kind", "categorical", vocabulary=["oak", "elm"])
    cells = samples._column(np.array([0, 1, -1, np.nan], np.float32), feature, numeric=False)
    assert cells.tolist() == ["oak", "elm", None, None]


def test_too_few_samples_are_refused_with_their_number(fleet: Fleet) -> None:
    send(fleet, "cam-00", 99)
    with (
        fleet.database.write() as session,
        pytest.raises(InvalidError, match="99 labelled rows for the purpose 'retraining'"),
    ):
        service.start(session, fleet.store, "digits", RECIPE, fleet.clock())


def test_a_trigger_needs_a_model_and_a_readable_recipe(fleet: Fleet) -> None:
    with fleet.database.write() as session:
        with pytest.raises(NotFoundError, match="there is no model 'x'"):
            service.add_trigger(session, "x", RECIPE, 0.0)
        with pytest.raises(InvalidError, match="recipe: "):
            service.add_trigger(session, "digits", {"trainer": "sklearn", "nonsense": 1}, 0.0)


# --- deciding -------------------------------------------------------------------------------------


def begin(fleet: Fleet, **changes) -> None:
    add_trigger(fleet, **changes)
    drift(fleet)
    send(fleet, "cam-00", 200)
    assert len(check(fleet)) == 1


def test_a_better_challenger_is_approved_released_and_rolled_out_through_a_canary(
    fleet: Fleet,
) -> None:
    begin(fleet)
    ended = finish(fleet, {"comparison": comparison()})
    assert (ended.state, ended.version, ended.rollout_id) == ("approved", "2", 2)
    with fleet.database.read() as session:
        version = registry.get_version(session, "digits", "2")
        rollout = session.get_one(Rollout, 2)
    assert version.state == VersionState.APPROVED
    assert version.decision["incident"] == 1
    assert (rollout.strategy, rollout.release, rollout.previous) == ("canary", 2, None)
    # The devices keep the order that they had.
    assert rollout.order == {"window_rows": 250}


def test_a_challenger_that_is_no_better_is_refused_with_the_figures(fleet: Fleet) -> None:
    begin(fleet)
    ended = finish(fleet, {"comparison": comparison(gain=0.01, better=3)})
    assert ended.state == "refused"
    assert "a gain of 1.0%; at least 5.0% is needed" in ended.reason
    with fleet.database.read() as session:
        version = registry.get_version(session, "digits", "2")
        assert version.state == VersionState.REFUSED
        assert version.decision["challenger_score"] == 0.61
        assert len(list(session.scalars(select(Release)))) == 1


def test_without_auto_release_an_approved_challenger_waits_for_a_person(fleet: Fleet) -> None:
    begin(fleet, auto_release=False)
    ended = finish(fleet, {"comparison": comparison()})
    assert (ended.state, ended.rollout_id) == ("approved", None)


@pytest.mark.parametrize("yes", [True, False])
def test_a_challenger_of_a_high_risk_model_waits_for_two_people(fleet: Fleet, yes: bool) -> None:
    for name in ("ann", "ben"):
        account(fleet.database, name, "approver")
    begin(fleet)
    with fleet.database.write() as session:
        approvals.set_risk(session, "digits", "high", "", 0.0)
    waiting = finish(fleet, {"comparison": comparison()})
    assert (waiting.state, waiting.rollout_id, waiting.finished_at) == ("waiting", None, None)
    assert waiting.reason.endswith("; waits for approval 1")

    def go_on() -> Retraining:
        with fleet.database.write() as session:
            awaited.start(session, fleet.clock())
            service.conclude(session, fleet.clock())
            return session.get_one(Retraining, waiting.id)

    assert go_on().state == "waiting"
    with fleet.database.write() as session:
        digest = approvals.get(session, 1).digest
        for name in ("ann", "ben") if yes else ("ann",):
            caller = tokens.caller_of(session, name)
            approvals.speak(session, 1, caller, yes=yes, digest=digest, reason="", now=0.0)
    ended = go_on()
    assert (ended.state, ended.rollout_id) == (("approved", 2) if yes else ("refused", None))
    assert ended.reason.endswith("approval 1: rollout 2" if yes else "approval 1 is refused")


def test_a_failed_job_ends_the_retraining_with_its_error(fleet: Fleet) -> None:
    begin(fleet)
    ended = finish(fleet, None, error="the conversion ran out of memory")
    assert (ended.state, ended.reason) == ("failed", "the conversion ran out of memory")


def test_an_approved_challenger_that_no_device_can_take_says_so(fleet: Fleet) -> None:
    begin(fleet, to="label:site=moon")
    ended = finish(fleet, {"comparison": comparison()})
    assert ended.state == "approved"
    assert ended.reason.endswith(
        "not rolled out: the group 'label:site=moon' has no enrolled device"
    )


def test_a_persons_decision_stays(fleet: Fleet) -> None:
    begin(fleet, auto_release=False)
    fleet.add_version("2", state=VersionState.APPROVED)
    with fleet.database.write() as session:
        job = session.scalars(select(Job)).one()
        job.state, job.result = (
            JobState.SUCCEEDED,
            {
                "version": "2",
                "comparison": comparison(gain=0.0, better=1),
            },
        )
        service.conclude(session, fleet.clock())
        assert registry.get_version(session, "digits", "2").state == VersionState.APPROVED


# --- with real training ---------------------------------------------------------------------------


def run_job(fleet: Fleet, job_id: int, folder) -> None:
    with fleet.database.read() as session:
        job = session.get_one(Job, job_id)
    folder.mkdir()
    work = "edgefleet_cloud.training.work:train"
    done = perform(Task(job.id, work, job.arguments, folder, fleet.store.folder))
    assert done.result is not None, done.trace
    with fleet.database.write() as session:
        job = session.get_one(Job, job_id)
        job.result = outcome.finish(session, fleet.store, job, done.result, fleet.clock())
        job.state = JobState.SUCCEEDED


def test_a_shifted_world_gives_a_challenger_that_beats_the_champion_on_its_own_runtime(
    database: Database, store: Store, clock, tmp_path
) -> None:
    fleet = Fleet(database, store, clock)
    fleet.add_devices(4)
    base, holdout = add_dataset(fleet, "base", 600), add_dataset(fleet, "holdout", 200)
    request = training.TrainRequest(
        model="digits",
        trainer="sklearn",
        dataset=base,
        holdout=holdout,
        parameters={"estimator": "LogisticRegression"},
        variants=["onnx-fp32"],
    )
    with database.write() as session:
        job = training.start_training(session, request, clock())
    run_job(fleet, job.id, tmp_path / "one")
    with database.write() as session:
        registry.approve(session, "digits", "1", {}, 0.0)
        rollouts.create(session, "digits", "1", "all", "direct", clock())
    recipe = {
        "trainer": "sklearn",
        "parameters": {"estimator": "DecisionTreeClassifier"},
        "variants": ["onnx-fp32"],
        "min_samples": 200,
        "max_loss": 0.1,
    }
    add_trigger(fleet, **recipe)
    drift(fleet)
    send(fleet, "cam-00", 600, shift=3.0)
    (made,) = check(fleet)
    run_job(fleet, made.job_id, tmp_path / "two")
    with database.write() as session:
        (ended,) = service.conclude(session, clock())
    assert ended.state == "approved", ended.reason
    assert ended.decision["champion_score"] < 0.6
    assert ended.decision["challenger_score"] > 0.9
    assert ended.decision["guard_loss"] <= 0.1
    with database.read() as session:
        assert session.get_one(Rollout, ended.rollout_id).strategy == "canary"
        assert session.get_one(Version, 2).lineage["dataset"] == session.get_one(Run, 2).dataset
