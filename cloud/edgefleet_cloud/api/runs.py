"""Training runs over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.api.jobs import JobAnswer
from edgefleet_cloud.api.policies import Budget
from edgefleet_cloud.database.models import Job, Run
from edgefleet_cloud.datasets import content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.training import service, trainers
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["runs"])


class TrainBody(BaseModel):
    """A training to start."""

    model: str = Field(description="Name of the model; it is made if it does not exist.")
    trainer: str = Field(description=f"One of {', '.join(trainers.TRAINERS)}.")
    dataset: str = Field(description="Digest or name of the rows to train on.")
    holdout: str | None = Field(
        None, description="Digest or name of the rows to judge on; without it, rows are held out."
    )
    holdout_share: float = Field(
        service.HOLDOUT_SHARE, gt=0, lt=1, description="Share to hold out where none are given."
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="Of the trainer.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the split, the model and the conversion.")
    variants: list[str] | None = Field(None, description="To make; all that apply by default.")
    compare: bool = Field(False, description="Judge the result against the released version.")
    budget: Budget = Field(Budget(), description="Of the model on a device.")


class RunAnswer(BaseModel):
    """One training run, the import of a fitted model, or a search for its best variants."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    model: str
    trainer: str = Field(description="`import` for a model that was handed in, `search`.")
    dataset: str | None
    holdout: str | None
    parameters: dict[str, Any]
    seed: int
    code: str = Field(description="Version of the code that trained.")
    environment: dict[str, str] = Field(description="Package versions.")
    metrics: dict[str, float]
    artifact: str | None = Field(description="Digest of the fitted model file.")
    filename: str = Field(description="What that is called; empty for finished bundles.")
    reports: dict[str, str] = Field(description="Of a search: form → digest.")
    state: str = Field(description="running, succeeded or failed.")
    error: str | None
    created_at: float
    finished_at: float | None


class TrainerAnswer(BaseModel):
    """A way to train."""

    name: str
    summary: str


@router.get("/trainers", dependencies=allow(Permission.READ))
def list_trainers() -> list[TrainerAnswer]:
    """List the ways to train."""
    return [
        TrainerAnswer(name=name, summary=trainer.summary)
        for name, trainer in trainers.TRAINERS.items()
    ]


@router.post(
    "/runs",
    status_code=202,
    dependencies=allow(Permission.MAKE, model_in_body=True),
    response_model=JobAnswer,
)
def start_run(hub: Hub, asker: Asker, body: TrainBody) -> Job:
    """Start a training; the job that is answered trains, converts, verifies and registers."""
    check(asker, Permission.MAKE, body.model)
    with hub.database.read() as session:
        dataset = datasets.find(session, body.dataset)
        holdout = None if body.holdout is None else datasets.find(session, body.holdout)
    trainers.check(body.trainer, body.parameters, dataset.columns)
    if dataset.label is None:
        raise InvalidError(f"dataset {dataset.name} has no label column; add it again with one")
    # Reading and writing the rows is slow, and so not part of the transaction.
    parts = None
    if holdout is None:
        parts = content.split(
            hub.store, dataset.digest, dataset.label, body.holdout_share, body.seed
        )
    now = hub.clock()
    with hub.database.write() as session:
        train, held = dataset, holdout
        if parts is not None:
            train, held = datasets.add_split(session, dataset, *parts, now)
        assert held is not None
        request = service.TrainRequest(
            model=body.model,
            trainer=body.trainer,
            dataset=train.digest,
            holdout=held.digest,
            parameters=body.parameters,
            seed=body.seed,
            variants=body.variants,
            budget=body.budget.value(),
        )
        job = service.start_training(session, request, now, compare=body.compare)
    hub.wake()
    return job


@router.get("/runs", dependencies=allow(Permission.READ), response_model=list[RunAnswer])
def list_runs(
    hub: Hub, model: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[Run]:
    """List runs, newest first."""
    with hub.database.read() as session:
        return service.list_runs(session, model=model, limit=limit)


@router.get("/runs/{run_id}", dependencies=allow(Permission.READ), response_model=RunAnswer)
def show_run(hub: Hub, run_id: RowId) -> Run:
    """Show one run."""
    with hub.database.read() as session:
        return service.get_run(session, run_id)
