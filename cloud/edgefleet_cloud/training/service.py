"""Starting work that ends in a new version: a training, a retraining, or a model handed in.

Each start makes a run (what is tried, with which data and seed), reserves the version's number and
queues the job, in one transaction. `outcome` ends what is begun here.
"""

from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import Struct, field
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Dataset, Job, Run, Version
from edgefleet_cloud.errors import InvalidError, NotFoundError
from edgefleet_cloud.jobs import service as jobs
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.training import trainers
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.values import Json
from edgefleet_converters import sources
from edgefleet_converters.conversion import DeviceBudget
from edgefleet_converters.pipeline import VARIANTS

# Share of a dataset that is held out where no hold-out set is given.
HOLDOUT_SHARE = 0.25
STRATEGIES = ("direct", "staged", "canary")


class BoundRecipe(Struct, frozen=True):
    """A recipe (YAML) whose variant goes to `boards`; to all where none are named."""

    recipe: str
    boards: list[str]


class TrainRequest(Struct, frozen=True):
    """A training to start.

    Attributes:
        dataset: digest of the rows to train on.
        holdout: digest of the rows to judge on; no row may be in both.
        guard: digest of further rows that nobody has trained on; challenger and champion are
            compared on them too.
        parameters: of the trainer (`trainers`).
        variants: to make; None for all that apply.
        recipes: to make instead of these, if there are any.
        budget: of the model on a device.
    """

    model: str
    trainer: str
    dataset: str
    holdout: str
    guard: str | None = None
    parameters: Json = field(default_factory=dict)
    seed: int = 0
    variants: list[str] | None = None
    recipes: list[BoundRecipe] = field(default_factory=list)
    budget: DeviceBudget = field(default_factory=DeviceBudget)


class Shipment(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to a model that was handed in, once it is converted.

    Attributes:
        to: devices, as `fleet.groups.select` reads them.
        strategy: direct, staged or canary.
        order: policy for the devices (see `database.models.Desired`), None for the default.
    """

    to: str
    strategy: str = "direct"
    order: Json | None = None


class ImportRequest(Struct, frozen=True):
    """A fitted model to convert, and to ship if asked.

    Attributes:
        artifact: digest of the model file in the store; the suffix of `filename` is its format.
        sample: digest of a dataset of training rows.
        budget: of the model on a device.
    """

    model: str
    artifact: str
    filename: str
    sample: str
    variants: list[str] | None = None
    seed: int = 0
    ship: Shipment | None = None
    budget: DeviceBudget = field(default_factory=DeviceBudget)


def start_training(
    session: Session, request: TrainRequest, now: float, *, compare: bool = False
) -> Job:
    """Begin a run and queue its job (`train`, or `retrain` with `compare`).

    The job's result is {"model", "version", "run", "variants", "metrics"}; with `compare` also
    "comparison": `comparison.Comparison` with the champion as JSON, or None where the model has
    no release yet, and "guard": the same on the guard's rows, None without them.

    Args:
        session: in a write transaction.
        request: what to train.
        now: Unix seconds.
        compare: judge the result against the champion on the same held-out rows.

    Raises:
        NotFoundError: if there is no such dataset.
        InvalidError: if trainer, parameters, variants or data cannot work together.
    """
    dataset, holdout = _dataset(session, request.dataset), _dataset(session, request.holdout)
    if dataset.label is None:
        raise InvalidError(f"dataset {dataset.name} has no label column; add it again with one")
    if (dataset.label, dataset.columns) != (holdout.label, holdout.columns):
        raise InvalidError(
            f"datasets {dataset.name} and {holdout.name} have different columns or labels"
        )
    guard = holdout if request.guard is None else _dataset(session, request.guard)
    if (dataset.label, dataset.columns) != (guard.label, guard.columns):
        raise InvalidError(
            f"datasets {dataset.name} and {guard.name} have different columns or labels"
        )
    check_variants(request.variants)
    parameters = trainers.check(request.trainer, request.parameters, dataset.columns)
    request = msgspec.structs.replace(request, parameters=parameters)
    version = registry.reserve(session, request.model)
    run = _run(session, request, now)
    champion = registry.champion(session, request.model) if compare else None
    arguments: dict[str, Any] = {
        "run_id": run.id,
        "version": version,
        "label": dataset.label,
        "champion": None if champion is None else _standing(session, champion),
        **msgspec.to_builtins(request),
    }
    job = jobs.submit(session, "retrain" if compare else "train", arguments, now)
    after = {
        "run": run.id,
        "job": job.id,
        "trainer": request.trainer,
        "dataset": request.dataset,
        "parameters": request.parameters,
        "seed": request.seed,
    }
    audit.record(session, "run.start", f"{request.model} {version}", now, after=after)
    return job


def start_import(session: Session, request: ImportRequest, now: float) -> Job:
    """Begin the import of a fitted model and queue its job (`convert_and_register`).

    The job's result is {"model", "version", "run", "variants", "metrics"}, and where it ships
    also "release" and "rollout" (their numbers).

    Raises:
        NotFoundError: if there is no such dataset.
        InvalidError: if the file's format, a variant or the strategy is not known.
    """
    sample = _dataset(session, request.sample)
    check_filename(request.filename)
    check_variants(request.variants)
    _check_strategy(request.ship)
    version = registry.reserve(session, request.model)
    run = _import_run(
        session, request.model, request.artifact, now, parameters={"file": request.filename}
    )
    run.dataset, run.seed, run.filename = sample.digest, request.seed, request.filename
    arguments = {
        "run_id": run.id,
        "version": version,
        "label": sample.label,
        **msgspec.to_builtins(request),
    }
    job = jobs.submit(session, "convert_and_register", arguments, now)
    after = {
        "run": run.id,
        "job": job.id,
        "artifact": request.artifact,
        "file": request.filename,
        "sample": request.sample,
        "ship": msgspec.to_builtins(request.ship),
    }
    audit.record(session, "run.import", f"{request.model} {version}", now, after=after)
    return job


def start_bundles(
    session: Session, model: str, archive: str, ship: Shipment | None, now: float
) -> Job:
    """Begin to take in bundles that were made elsewhere, and queue the job (`register_bundles`).

    The job's result is that of `start_import`.

    Args:
        session: in a write transaction.
        model: its name here.
        archive: digest of the archive in the store, see `edgefleet_converters.bundle_archive`.
        ship: what happens to the version then; None to leave it registered.
        now: Unix seconds.

    Raises:
        InvalidError: if the strategy is not known.
    """
    _check_strategy(ship)
    version = registry.reserve(session, model)
    run = _import_run(session, model, archive, now, parameters={})
    shipment = msgspec.to_builtins(ship)
    arguments = {
        "run_id": run.id,
        "model": model,
        "version": version,
        "archive": archive,
        "ship": shipment,
    }
    job = jobs.submit(session, "register_bundles", arguments, now)
    after = {"run": run.id, "job": job.id, "artifact": archive, "ship": shipment}
    audit.record(session, "run.import", f"{model} {version}", now, after=after)
    return job


def check_variants(variants: list[str] | None) -> None:
    """Refuse a variant that no converter makes.

    Raises:
        InvalidError: names it and those that there are.
    """
    unknown = sorted(set(variants or []) - set(VARIANTS))
    if unknown:
        raise InvalidError(
            f"unknown variant {', '.join(unknown)}; expected some of {', '.join(VARIANTS)}"
        )


def check_filename(filename: str) -> None:
    """Refuse a model file whose name says that it cannot be converted, or is no plain name.

    Raises:
        InvalidError: names the formats that can.
    """
    path = PurePath(filename)
    if path.name != filename or len(filename) > 200 or sources.suffix(path) not in sources.KINDS:
        raise InvalidError(
            f"{filename[:200]!r} is no model file: expected a name ending in one of"
            f" {', '.join(sources.KINDS)}"
        )


def get_run(session: Session, run_id: int) -> Run:
    """Return one run.

    Raises:
        NotFoundError: if there is none with this number.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("run", run_id)
    return run


def list_runs(session: Session, *, model: str | None = None, limit: int = 100) -> list[Run]:
    """Return runs, newest first."""
    query = select(Run).order_by(Run.id.desc()).limit(limit)
    if model is not None:
        query = query.where(Run.model == model)
    return list(session.scalars(query))


def _dataset(session: Session, digest: str) -> Dataset:
    dataset = session.get(Dataset, digest)
    if dataset is None:
        raise NotFoundError("dataset", digest)
    return dataset


def _check_strategy(ship: Shipment | None) -> None:
    if ship is not None and ship.strategy not in STRATEGIES:
        raise InvalidError(f"strategy {ship.strategy!r}: expected one of {', '.join(STRATEGIES)}")


def _import_run(
    session: Session, model: str, artifact: str, now: float, *, parameters: Json
) -> Run:
    run = Run(
        model=model,
        trainer="import",
        parameters=parameters,
        seed=0,
        code="",
        environment={},
        started_by=acting.now().name,
        artifact=artifact,
        state="running",
        created_at=now,
    )
    session.add(run)
    session.flush()
    return run


def _run(session: Session, request: TrainRequest, now: float) -> Run:
    run = Run(
        model=request.model,
        trainer=request.trainer,
        dataset=request.dataset,
        holdout=request.holdout,
        parameters=request.parameters,
        seed=request.seed,
        code="",
        environment={},
        started_by=acting.now().name,
        state="running",
        created_at=now,
    )
    session.add(run)
    session.flush()
    return run


def _standing(session: Session, champion: Version) -> Json:
    manifests = {
        variant.name: variant.manifest
        for variant in registry.variants(session, champion.id)
        if variant.state == "verified"
    }
    return {"version": champion.version, "manifests": manifests}
