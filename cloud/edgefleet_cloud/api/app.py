"""The HTTP API, put together. `edgefleet openapi` prints its description."""

from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import text

from edgefleet_cloud import __version__
from edgefleet_cloud.api import (
    challenges,
    datasets,
    devices,
    errors,
    jobs,
    models,
    monitoring,
    retraining,
    rollouts,
    runs,
    ship,
)
from edgefleet_cloud.api.context import Hub
from edgefleet_cloud.api.limits import BodyLimit, SecurityHeaders
from edgefleet_cloud.services import Services

DESCRIPTION = """
Train, register, sign, push, watch and retrain models for a fleet of devices.

All times are Unix seconds, all digests SHA-256 in hexadecimal. Every error is
`{"error": "<a sentence for a person>"}`.
"""
TAGS = [
    {"name": "hub", "description": "The hub itself."},
    {"name": "datasets", "description": "Rows that models are trained and judged on."},
    {"name": "runs", "description": "Trainings."},
    {"name": "models", "description": "Models, their versions and releases."},
    {"name": "jobs", "description": "Background work."},
    {"name": "ship", "description": "From a fitted model to running devices in one request."},
    {"name": "devices", "description": "The fleet, and how a device joins it."},
    {"name": "challenges", "description": "Versions that run beside the champion."},
    {"name": "rollouts", "description": "Releases on their way to devices."},
    {"name": "monitoring", "description": "Drift and incidents."},
    {"name": "retraining", "description": "Rules that start a retraining."},
]
# What any endpoint may answer instead; each is `errors.ErrorAnswer`.
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": errors.ErrorAnswer, "description": meaning}
    for status, meaning in {
        401: "No operator token, or a wrong one.",
        403: "Not permitted.",
        404: "No such thing.",
        409: "Not in the present state.",
        413: "The request is too large.",
        422: "The request can never succeed as it is.",
    }.items()
}

hub_router = APIRouter(prefix="/v1", tags=["hub"])


class HealthAnswer(BaseModel):
    """The hub answers, and so does its database."""

    status: str = "ok"
    version: str = Field(description="Of the hub.")
    at: float = Field(description="The hub's time.")


@hub_router.get("/health")
def health(hub: Hub) -> HealthAnswer:
    """Tell that hub and database work; 503 if the database does not."""
    with hub.database.read() as session:
        session.execute(text("SELECT 1"))
    return HealthAnswer(version=__version__, at=hub.clock())


def create_app(services: Services, operator_token: str) -> FastAPI:
    """Return the API over these services.

    Args:
        services: of the running hub.
        operator_token: what `Authorization: Bearer` has to carry.
    """
    app = describe()
    app.state.services = services
    app.state.operator_token = operator_token
    limit_bytes = services.settings.upload_limit_bytes
    app.add_middleware(BodyLimit, token=operator_token, limit_bytes=limit_bytes)
    app.add_middleware(SecurityHeaders)
    return app


def describe() -> FastAPI:
    """Return the API without services: enough for its OpenAPI document."""
    app = FastAPI(
        title="edgefleet hub",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        openapi_url="/v1/openapi.json",
        # The interactive pages load scripts from elsewhere; a hub may have no way out.
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses=_ERRORS,
    )
    for router in (
        hub_router,
        datasets.router,
        runs.router,
        models.router,
        jobs.router,
        ship.router,
        devices.router,
        rollouts.router,
        challenges.router,
        monitoring.router,
        retraining.router,
    ):
        app.include_router(router)
    errors.install(app)
    return app
