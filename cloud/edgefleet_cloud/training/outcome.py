"""How jobs that make a version end, in the hub and in one transaction with the job's own state.

What follows from a job is decided by whoever asked for it, and is recorded under that name.

A model that was shipped is approved here: who ships it has decided. Where it is of high risk, that
decision only asks two others; the rollout waits for them. A trained one is only registered; a
comparison or a person approves it. So is what a search made.
"""

import msgspec
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Job, Run, Version
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training.service import Shipment
from edgefleet_cloud.training.work import CODE, Result
from edgefleet_cloud.trust.acting import acting
from edgefleet_cloud.trust.people import accounts, approvals
from edgefleet_cloud.values import Json


def finish(session: Session, store: Store, job: Job, result: Json, now: float) -> Json:
    """Register what the job made, end its run, and ship it if that was asked for."""
    made = msgspec.convert(result, Result)
    run = session.get_one(Run, made.run_id)
    with acting(accounts.actor(session, run.started_by)):
        return _finish(session, store, job, made, run, now)


def _finish(session: Session, store: Store, job: Job, made: Result, run: Run, now: float) -> Json:
    version = registry.register(session, store, made.registration, run.id, now)
    run.artifact, run.metrics = made.artifact, made.metrics
    run.filename, run.classes, run.reports = made.filename, made.classes, made.reports
    run.code, run.environment = CODE, made.environment
    run.state, run.finished_at = "succeeded", now
    answer: Json = {
        "model": version.model,
        "version": version.version,
        "run": run.id,
        "metrics": made.metrics,
        "phases_s": made.phases_s,
        "variants": [
            {
                "name": entry.name,
                "state": entry.state,
                "reason": entry.reason,
                "bytes": entry.model_bytes,
                "transfer_bytes": entry.transfer_bytes,
                "score": entry.measured.get("score"),
            }
            for entry in made.registration.variants
        ],
    }
    if job.kind == "retrain":
        answer["comparison"] = msgspec.to_builtins(made.comparison)
        answer["guard"] = msgspec.to_builtins(made.guard)
    if job.kind == "search":
        answer["choices"] = msgspec.to_builtins(made.choices)
        answer["reports"] = made.reports
    if job.arguments.get("ship") is not None:
        shipment = msgspec.convert(job.arguments["ship"], Shipment)
        answer.update(_ship(session, version, shipment, run.started_by, now))
    return answer


def fail(session: Session, job: Job, error: str, now: float) -> None:
    """End the job's run without a version."""
    run = session.get_one(Run, job.arguments["run_id"])
    run.state, run.error, run.finished_at = "failed", error, now


def _ship(session: Session, version: Version, shipment: Shipment, sender: str, now: float) -> Json:
    decision = {"by": sender, "reason": "shipped"}
    registry.approve(session, version.model, version.version, decision, now)
    wanted: Json = {
        "model": version.model,
        "version": version.version,
        "to": shipment.to,
        "strategy": shipment.strategy,
        "order": shipment.order,
    }
    asked = approvals.ask(session, version, now, then=wanted)
    if asked is not None:
        return {"approval": asked.id}
    rollout = rollouts.create(session, now=now, **wanted)
    return {"release": rollout.release, "rollout": rollout.id}
