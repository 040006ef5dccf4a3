"""The HTTP API, put together. `edgefleet openapi` prints its description."""

from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import text

from edgefleet_cloud import __version__
from edgefleet_cloud.api import (
    approvals,
    audit,
    bundles,
    challenges,
    datasets,
    devices,
    errors,
    identity,
    jobs,
    models,
    monitoring,
    people,
    retraining,
    rollouts,
    runs,
    searches,
    ship,
    trust,
)
from edgefleet_cloud.api.authentication import Authentication
from edgefleet_cloud.api.context import Hub
from edgefleet_cloud.api.limits import BodyLimit, EnrolmentLimit, SecurityHeaders
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.people import provider_sign_in
from edgefleet_cloud.trust.people.throttle import Throttle
from edgefleet_cloud.web import pages, signing

DESCRIPTION = """
Train, register, sign, push, watch and retrain models for a fleet of devices.

All times are Unix seconds, all digests SHA-256 in hexadecimal. Every error is
`{"error": "<a sentence for a person>"}`.
"""
TAGS = [
    {"name": "hub", "description": "The hub itself."},
    {"name": "people", "description": "Accounts, tokens, signing in."},
    {"name": "approvals", "description": "What waits for a second person."},
    {"name": "datasets", "description": "Rows that models are trained and judged on."},
    {"name": "runs", "description": "Trainings and searches."},
    {"name": "models", "description": "Models, their versions and releases."},
    {"name": "jobs", "description": "Background work."},
    {"name": "ship", "description": "From a fitted model to running devices in one request."},
    {"name": "devices", "description": "The fleet, and how a device joins it."},
    {"name": "challenges", "description": "Versions that run beside the champion."},
    {"name": "rollouts", "description": "Releases on their way to devices."},
    {"name": "monitoring", "description": "Drift and incidents."},
    {"name": "retraining", "description": "Rules that start a retraining."},
    {"name": "trust", "description": "Keys, signed metadata, and what waits for signatures."},
    {"name": "audit", "description": "Who decided what, and where a file came from."},
]
# What any endpoint may answer instead; each is `errors.ErrorAnswer`.
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": errors.ErrorAnswer, "description": meaning}
    for status, meaning in {
        400: "The body cannot be read at all.",
        401: "No token, or one that is not valid.",
        403: "Not permitted.",
        404: "No such thing.",
        409: "Not in the present state.",
        413: "The request is too large.",
        422: "The request can never succeed as it is.",
        429: "Too many failures; `Retry-After` says when to try again.",
        503: "The database does not answer now.",
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


def create_app(services: Services) -> FastAPI:
    """Return the API over the services of the running hub."""
    app = describe()
    app.state.services, app.state.throttle = services, Throttle()
    app.state.provider = provider_sign_in.open_provider(services.settings, services.clock)
    # The last one added sees a request first.
    app.add_middleware(BodyLimit, limit_bytes=services.settings.upload_limit_bytes)
    app.add_middleware(EnrolmentLimit, throttle=app.state.throttle)
    app.add_middleware(Authentication, throttle=app.state.throttle)
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
        people.router,
        approvals.router,
        signing.router,
        pages.router,
        datasets.router,
        runs.router,
        models.router,
        searches.router,
        jobs.router,
        ship.router,
        bundles.router,
        # Before the devices, whose `/{device_id}` would take `/expected` for a device.
        identity.router,
        devices.router,
        rollouts.router,
        challenges.router,
        monitoring.router,
        retraining.router,
        trust.router,
        audit.router,
    ):
        app.include_router(router)
    errors.install(app)
    return app
