"""Searches over HTTP: the best variant of a version for each board of the fleet."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Hub, RowId, allow
from edgefleet_cloud.api.jobs import JobAnswer
from edgefleet_cloud.database.models import Job
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.training import search as service
from edgefleet_cloud.training import service as runs
from edgefleet_cloud.training.boards import Board
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["runs"])

_MEDIA_TYPES = {"html": "text/html", "md": "text/markdown", "json": "application/json"}
_REPORT = {media: {"schema": {"title": "A report"}} for media in _MEDIA_TYPES.values()}
# The report is one page with its style and plots in it, and no script.
_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
        " frame-ancestors 'none'"
    )
}


class BoardBody(BaseModel):
    """A board to aim at."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64, description="Of its profile, like `rpi4`.")
    runtimes: list[str] = Field(
        default_factory=list,
        max_length=32,
        description="Like `onnxruntime==1.20`; the newest known where none is named.",
    )


class SearchBody(BaseModel):
    """What to search for."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(
        "all",
        max_length=500,
        description="Devices whose boards and runtimes are aimed at: `all`, `label:site=north`, ….",
    )
    boards: list[BoardBody] = Field(
        default_factory=list, max_length=32, description="Aimed at instead of those of devices."
    )
    budgets: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "max_drop, max_bytes, max_transfer_bytes, max_latency_us, max_memory_bytes, evidence"
            " (proven, not-refuted), confidence, prefer (size, latency), and for single boards the"
            " same under boards: {NAME: {…}}."
        ),
    )
    variants: list[str] | None = Field(
        None, max_length=64, description="Built-in recipes to try; all by default."
    )
    trials: int = Field(
        24, ge=0, le=service.MAX_TRIALS, description="Most points of the built-in spaces to try."
    )


@router.post(
    "/models/{model}/versions/{version}/search",
    status_code=202,
    dependencies=allow(Permission.MAKE),
    response_model=JobAnswer,
)
def start_search(hub: Hub, model: str, version: str, body: SearchBody) -> Job:
    """Search for the best variant for each board; the job registers them as a new version.

    Every variant is run and timed; the result names what each board gets and why, and the run keeps
    the report. The new version is released like any other.
    """
    request = service.SearchRequest(
        model,
        version,
        body.to,
        [Board(board.name, board.runtimes) for board in body.boards],
        body.budgets,
        body.variants,
        body.trials,
    )
    now = hub.clock()
    with hub.database.write() as session:
        job = service.start_search(session, request, now)
    hub.wake()
    return job


@router.get(
    "/runs/{run_id}/report",
    dependencies=allow(Permission.READ),
    response_class=Response,
    responses={200: {"content": _REPORT}},
)
def show_report(hub: Hub, run_id: RowId, form: Literal["html", "md", "json"] = "html") -> Response:
    """Return the report of a search: everything that was tried, and why it won or lost."""
    with hub.database.read() as session:
        digest = runs.get_run(session, run_id).reports.get(form)
    if digest is None:
        raise NotFoundError("report of run", run_id)
    return Response(hub.store.read(digest), media_type=_MEDIA_TYPES[form], headers=_HEADERS)
