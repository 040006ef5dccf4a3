"""Retraining: triggers that start it, jobs that do it, decisions that end it.

    drift incident + enabled trigger + enough samples ─▶ running ─job─▶ approved ─▶ (rollout)
    an operator ──────────────────────────────────────▶    │        ├▶ waiting ─people─▶ approved
                                                           │        └▶ refused    or refused
                                                           └─▶ failed (the job failed)

It waits where it would roll out a version of a high-risk model: two people have to approve that.

A trigger fires once for an incident. The comparison of champion and challenger runs in the job
(`training.work`), on rows that neither was trained on; what follows from it is decided here.
"""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    ApprovalState,
    Dataset,
    Incident,
    Job,
    JobState,
    Model,
    Retraining,
    Rollout,
    Run,
    Trigger,
    Verdict,
    Version,
    VersionState,
)
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import HubError, InvalidError, NotFoundError
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.retraining import recipe as recipes
from edgefleet_cloud.retraining import samples
from edgefleet_cloud.retraining.decision import Decision, decide
from edgefleet_cloud.retraining.recipe import Recipe
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training import service as training
from edgefleet_cloud.training.comparison import Comparison
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.values import Json
from edgefleet_protocol.sketch import decode_profile

logger = logging.getLogger(__name__)


# --- triggers -------------------------------------------------------------------------------------


def add_trigger(session: Session, model: str, recipe: Mapping[str, Any], now: float) -> Trigger:
    """Have drift of a model's champion start a retraining.

    Raises:
        NotFoundError: no such model.
        InvalidError: if the recipe cannot be read.
    """
    if session.get(Model, model) is None:
        raise NotFoundError("model", model)
    checked = recipes.read(recipe)
    trigger = Trigger(
        model=model,
        kind="drift",
        recipe=msgspec.to_builtins(checked),
        enabled=True,
        made_by=acting.now().name,
    )
    session.add(trigger)
    session.flush()
    after = {"model": model, "enabled": True, "recipe": trigger.recipe}
    audit.record(session, "trigger.create", str(trigger.id), now, after=after)
    return trigger


def disable_trigger(session: Session, trigger_id: int, now: float) -> Trigger:
    """Let a trigger start nothing any more.

    Raises:
        NotFoundError: if there is none with this number.
    """
    trigger = get_trigger(session, trigger_id)
    before, trigger.enabled = trigger.enabled, False
    session.flush()
    audit.record(
        session,
        "trigger.disable",
        str(trigger.id),
        now,
        before={"enabled": before},
        after={"enabled": False},
    )
    return trigger


def get_trigger(session: Session, trigger_id: int) -> Trigger:
    """Return one trigger.

    Raises:
        NotFoundError: if there is none with this number.
    """
    trigger = session.get(Trigger, trigger_id)
    if trigger is None:
        raise NotFoundError("trigger", trigger_id)
    return trigger


def list_triggers(session: Session, *, model: str | None = None) -> list[Trigger]:
    """Return all triggers, newest first."""
    query = select(Trigger).order_by(Trigger.id.desc())
    if model is not None:
        query = query.where(Trigger.model == model)
    return list(session.scalars(query))


def check(session: Session, store: Store, now: float) -> list[Retraining]:
    """Start the retrainings that are due: drift on a champion, and enough labelled rows since.

    Args:
        session: in a write transaction.
        store: holds the datasets.
        now: Unix seconds.
    """
    started = []
    enabled = select(Trigger).where(Trigger.kind == "drift", Trigger.enabled.is_(True))
    for trigger in session.scalars(enabled.order_by(Trigger.id)):
        champion = registry.champion(session, trigger.model)
        incident = champion and _drift(session, champion)
        if not champion or not incident or _has_fired(trigger, champion, incident):
            continue
        recipe = recipes.read(trigger.recipe)
        selection = samples.Selection(
            trigger.model, recipe.purpose, _began(session, champion, incident)
        )
        if samples.count(session, selection) < recipe.min_samples:
            continue
        trigger.fired_at, trigger.fired_version = now, champion.version
        try:
            with session.begin_nested():
                made = _start(session, store, trigger.model, recipe, selection, now)
                reason = f"trigger {trigger.id} on incident {incident.id}"
                _record_start(session, made, now, reason)
        except HubError:
            # The next incident fires it again; until then a person has to look at the recipe.
            logger.exception("trigger %d of %s could not start", trigger.id, trigger.model)
            continue
        made.trigger_id, made.incident_id = trigger.id, incident.id
        started.append(made)
    session.flush()
    return started


def _drift(session: Session, champion: Version) -> Incident | None:
    return session.scalar(
        select(Incident).where(
            Incident.kind == "drift",
            Incident.model == champion.model,
            Incident.version == champion.version,
            Incident.scope.in_(("cohort", "fleet")),
            Incident.closed_at.is_(None),
        )
    )


def _has_fired(trigger: Trigger, champion: Version, incident: Incident) -> bool:
    return (
        trigger.fired_version == champion.version
        and trigger.fired_at is not None
        and trigger.fired_at >= incident.opened_at
    )


def _began(session: Session, champion: Version, incident: Incident) -> float:
    """Return when the drift of an incident began: the verdicts since know it better than it."""
    found = session.scalars(
        select(Verdict.findings).where(
            Verdict.model == champion.model,
            Verdict.version == champion.version,
            Verdict.at >= incident.opened_at,
        )
    )
    since = [
        float(finding["since"])
        for findings in found
        for finding in findings
        if finding["kind"] == "shift" and finding["scope"] in ("cohort", "fleet")
    ]
    return min(since, default=incident.opened_at)


# --- starting -------------------------------------------------------------------------------------


def start(
    session: Session,
    store: Store,
    model: str,
    recipe: Mapping[str, Any],
    now: float,
    *,
    since: float = 0.0,
) -> Retraining:
    """Retrain a model now, with the samples that came in since a time.

    Raises:
        InvalidError: if the recipe cannot be read, or there are too few samples.
        NotFoundError: if a dataset, or a released version of the model, is missing.
    """
    checked = recipes.read(recipe)
    selection = samples.Selection(model, checked.purpose, since)
    held = samples.count(session, selection)
    if held < checked.min_samples:
        raise InvalidError(
            f"{held} labelled rows for the purpose {checked.purpose!r};"
            f" the recipe needs {checked.min_samples}"
        )
    made = _start(session, store, model, checked, selection, now)
    _record_start(session, made, now, "")
    return made


def _record_start(session: Session, made: Retraining, now: float, reason: str) -> None:
    after = {"model": made.model, "champion": made.champion, "job": made.job_id}
    audit.record(
        session,
        "retraining.start",
        str(made.id),
        now,
        after={**after, "recipe": made.recipe},
        reason=reason,
    )


def _start(
    session: Session,
    store: Store,
    model: str,
    recipe: Recipe,
    selection: samples.Selection,
    now: float,
) -> Retraining:
    champion = registry.champion(session, model)
    if champion is None:
        raise NotFoundError("released version of model", model)
    run = session.get_one(Run, champion.run_id)
    built = samples.build(
        session,
        store,
        selection,
        _base(session, recipe, run),
        decode_profile(store.read(champion.reference)).features,
        holdout_share=recipe.holdout_share,
        seed=recipe.seed,
        source=f"samples of {model} for {recipe.purpose} since {selection.since:.0f}",
        now=now,
    )
    if built.rows < recipe.min_samples:
        raise InvalidError(
            f"{built.rows} different readable rows; the recipe needs {recipe.min_samples}"
        )
    if recipe.max_loss is not None and run.holdout is None:
        raise InvalidError(
            f"max_loss needs the rows that {model} {champion.version} was judged on;"
            " its run names none"
        )
    request = training.TrainRequest(
        model=model,
        trainer=recipe.trainer,
        dataset=built.train,
        holdout=built.holdout,
        guard=run.holdout if recipe.max_loss is not None else None,
        parameters=recipe.parameters,
        seed=recipe.seed,
        variants=recipe.variants,
        recipes=_recipes_of(session, champion) if recipe.variants is None else [],
        budget=recipe.budget,
    )
    job = training.start_training(session, request, now, compare=True)
    made = Retraining(
        model=model,
        job_id=job.id,
        champion=champion.version,
        recipe=msgspec.to_builtins(recipe),
        state="running",
        reason=f"{built.rows} field rows; {built.left_out} batches left out",
        created_at=now,
    )
    session.add(made)
    session.flush()
    return made


def _recipes_of(session: Session, champion: Version) -> list[training.BoundRecipe]:
    """Return what the champion's variants were made by, and for; [] if that is not known of all."""
    made = [
        training.BoundRecipe(variant.recipe, variant.needs.get("boards", []))
        for variant in registry.variants(session, champion.id)
    ]
    return made if all(item.recipe for item in made) else []


def _base(session: Session, recipe: Recipe, run: Run) -> list[Dataset]:
    if recipe.base is not None:
        found = [datasets.find(session, name) for name in recipe.base]
    else:
        known = session.get(Dataset, run.dataset) if run.dataset else None
        found = [known] if known is not None else []
    if not found:
        raise InvalidError("the recipe has no base dataset, and the champion's run names none")
    return found


# --- deciding -------------------------------------------------------------------------------------


def conclude(session: Session, now: float) -> list[Retraining]:
    """Decide on the retrainings whose jobs have ended, and on those that people have answered.

    Args:
        session: in a write transaction.
        now: Unix seconds.
    """
    query = (
        select(Retraining, Job)
        .join(Job, Job.id == Retraining.job_id)
        .where(
            Retraining.state == "running",
            Job.state.in_((JobState.SUCCEEDED, JobState.FAILED)),
        )
    )
    ended = []
    for retraining, job in session.execute(query).all():
        retraining.finished_at = now
        if job.state == JobState.FAILED:
            retraining.state, retraining.reason = "failed", job.error or "the job failed"
        else:
            _conclude(session, retraining, job.result, now)
        _record_decision(session, retraining, "running", now)
        ended.append(retraining)
    for retraining in session.scalars(select(Retraining).where(Retraining.state == "waiting")):
        _conclude_waiting(session, retraining, now)
    session.flush()
    return ended


def _record_decision(session: Session, retraining: Retraining, before: str, now: float) -> None:
    audit.record(
        session,
        "retraining.decide",
        str(retraining.id),
        now,
        before={"state": before},
        after={
            "state": retraining.state,
            "model": retraining.model,
            "version": retraining.version,
            "rollout": retraining.rollout_id,
            "decision": retraining.decision,
        },
        reason=retraining.reason or "",
    )


def _conclude(session: Session, retraining: Retraining, result: Json, now: float) -> None:
    recipe = recipes.read(retraining.recipe)
    champion = registry.champion(session, retraining.model)
    decision = decide(
        _comparison(result.get("comparison")),
        _comparison(result.get("guard")),
        recipe,
        champion.version if champion else None,
    )
    retraining.version = str(result["version"])
    retraining.reason = decision.reason
    retraining.decision = msgspec.to_builtins(decision)
    retraining.state = "approved" if decision.approved else "refused"
    _tell_registry(session, retraining, decision, now)
    if decision.approved and recipe.auto_release:
        _roll_out(session, retraining, recipe, now)


def _conclude_waiting(session: Session, retraining: Retraining, now: float) -> None:
    """End the wait for people once they have answered."""
    version = registry.get_version(session, retraining.model, retraining.version or "")
    asked = approvals.of_version(session, version)
    if asked is None or asked.state == ApprovalState.WAITING:
        return
    if asked.state == ApprovalState.APPROVED:
        if not asked.outcome:  # `rollouts.awaited` has not come to it yet
            return
        retraining.state, retraining.rollout_id = "approved", asked.rollout_id
        retraining.reason += f"; approval {asked.id}: {asked.outcome}"
    else:
        retraining.state = "refused"
        retraining.reason += f"; approval {asked.id} is {asked.state}"
    retraining.finished_at = now
    session.flush()
    _record_decision(session, retraining, "waiting", now)


def _tell_registry(
    session: Session, retraining: Retraining, decision: Decision, now: float
) -> None:
    version = registry.get_version(session, retraining.model, retraining.version or "")
    if version.state != VersionState.REGISTERED:
        # A person has decided meanwhile, and stays right.
        return
    said = {
        **retraining.decision,
        "by": "comparison",
        "retraining": retraining.id,
        "incident": retraining.incident_id,
    }
    tell = registry.approve if decision.approved else registry.refuse
    tell(session, retraining.model, version.version, said, now)


def _roll_out(session: Session, retraining: Retraining, recipe: Recipe, now: float) -> None:
    order = recipe.order
    if order is None:
        order = session.scalar(
            select(Rollout.order)
            .where(Rollout.model == retraining.model)
            .order_by(Rollout.id.desc())
            .limit(1)
        )
    wanted: Json = {
        "model": retraining.model,
        "version": retraining.version or "",
        "to": recipe.to,
        "strategy": recipe.strategy,
        "stages": recipe.stages,
        "gate": recipe.gate,
        "order": order,
    }
    version = registry.get_version(session, retraining.model, wanted["version"])
    try:
        with session.begin_nested():
            asked = approvals.ask(session, version, now, reason=retraining.reason, then=wanted)
            if asked is not None:
                retraining.state, retraining.finished_at = "waiting", None
                retraining.reason += f"; waits for approval {asked.id}"
                return
            rollout = rollouts.create(session, now=now, **wanted)
    except HubError as error:
        logger.exception("retraining %d: its challenger is not rolled out", retraining.id)
        retraining.reason += f"; not rolled out: {error}"
        return
    retraining.rollout_id = rollout.id


def _comparison(given: Json | None) -> Comparison | None:
    return msgspec.convert(given, Comparison) if given else None


# --- what the API shows ---------------------------------------------------------------------------


def get(session: Session, retraining_id: int) -> Retraining:
    """Return one retraining.

    Raises:
        NotFoundError: if there is none with this number.
    """
    found = session.get(Retraining, retraining_id)
    if found is None:
        raise NotFoundError("retraining", retraining_id)
    return found


def list_retrainings(
    session: Session, *, model: str | None = None, limit: int = 100
) -> list[Retraining]:
    """Return retrainings, newest first."""
    query = select(Retraining).order_by(Retraining.id.desc()).limit(limit)
    if model is not None:
        query = query.where(Retraining.model == model)
    return list(session.scalars(query))
