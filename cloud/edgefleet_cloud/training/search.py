"""Starting a search: of a version that is here, the best variant for each kind of board.

Rules:

1. A search makes a new version of the same fitted model: what was approved never changes.
2. Variants are calibrated on the rows that the version was trained on, and judged on those that it
   was judged on.
3. What cannot be searched for is refused here, before anything is queued.
"""

from typing import Any

import msgspec
from msgspec import Struct, field
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Dataset, Job, Run, Version
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.fleet import groups
from edgefleet_cloud.jobs import service as jobs
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.training import boards
from edgefleet_cloud.training.boards import Board
from edgefleet_cloud.training.service import check_variants
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.values import Json
from edgefleet_converters.searching import budgets

# More points than the built-in spaces have make no better search of a model this small.
MAX_TRIALS = 200


class SearchRequest(Struct, frozen=True):
    """A search to start.

    Attributes:
        version: of `model`, whose fitted model is in the store.
        to: devices, as `fleet.groups.select` reads them: their boards and runtimes are aimed at.
        boards: aimed at instead of those of devices.
        budgets: as `edgefleet_converters.searching.budgets.plan` reads them.
        variants: names of the built-in recipes to try; None for all.
        trials: most points of the built-in spaces that are tried besides.
    """

    model: str
    version: str
    to: str = "all"
    boards: list[Board] = field(default_factory=list)
    budgets: Json = field(default_factory=dict)
    variants: list[str] | None = None
    trials: int = 24


def start_search(session: Session, request: SearchRequest, now: float) -> Job:
    """Begin a search and queue its job (`search`).

    The job's result is that of a training, with "choices" (for each board the chosen variant, the
    reason, and what a reader must know) and "reports" (html, md, json → digest).

    Args:
        session: in a write transaction.
        request: what to search for.
        now: Unix seconds.

    Raises:
        NotFoundError: there is no such version.
        InvalidError: its fitted model or rows are not here, or nothing can be aimed at.
        BadInputError: a budget is none, or nothing is known of a runtime's version.
    """
    source = registry.get_version(session, request.model, request.version)
    fitted = session.get_one(Run, source.run_id)
    sample = _sample(session, source, fitted)
    wanted = request.boards or boards.of_devices(groups.devices_in(session, request.to))
    boards.checked(wanted)
    _check_budgets(request.budgets, wanted)
    check_variants(request.variants)
    version = registry.reserve(session, request.model)
    asked: Json = {
        "of": source.version,
        "boards": msgspec.to_builtins(wanted),
        "budgets": request.budgets,
        "variants": request.variants,
        "trials": request.trials,
    }
    run = Run(
        model=request.model,
        trainer="search",
        dataset=sample.digest,
        holdout=fitted.holdout,
        parameters=asked,
        seed=fitted.seed,
        code="",
        environment={},
        artifact=fitted.artifact,
        filename=fitted.filename,
        classes=fitted.classes,
        started_by=acting.now().name,
        state="running",
        created_at=now,
    )
    session.add(run)
    session.flush()
    arguments: dict[str, Any] = {
        "run_id": run.id,
        "model": request.model,
        "version": version,
        "artifact": fitted.artifact,
        "filename": fitted.filename,
        "sample": sample.digest,
        "holdout": fitted.holdout,
        "label": sample.label,
        "classes": fitted.classes,
        "seed": fitted.seed,
        **asked,
    }
    job = jobs.submit(session, "search", arguments, now)
    after = {"run": run.id, "job": job.id, **asked}
    audit.record(session, "run.search", f"{request.model} {version}", now, after=after)
    return job


def _sample(session: Session, source: Version, fitted: Run) -> Dataset:
    """Return the rows behind a version, if its fitted model is here too."""
    what = f"{source.model} {source.version}"
    sample = None if fitted.dataset is None else session.get(Dataset, fitted.dataset)
    if sample is None or not fitted.filename or fitted.artifact is None:
        raise InvalidError(
            f"{what} came as finished bundles: its fitted model and rows are not here; search with"
            " `edgefleet-convert search` where they are, and hand in what it makes with `edgefleet"
            " import`"
        )
    return sample


def _check_budgets(values: Json, wanted: list[Board]) -> None:
    plan = budgets.plan(values, {})
    strange = sorted(set(plan.boards) - {board.name for board in wanted})
    if strange:
        raise InvalidError(
            f"budgets for {', '.join(strange)}, which is not searched for; boards here are:"
            f" {', '.join(board.name for board in wanted)}"
        )
