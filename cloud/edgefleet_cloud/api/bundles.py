"""Bundles over HTTP: what `edgefleet-convert` made elsewhere becomes a version here."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, UploadFile
from pydantic import BaseModel, Field

from edgefleet_cloud.api.context import Asker, Hub, allow, check
from edgefleet_cloud.api.uploads import on_disk
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.fleet import groups
from edgefleet_cloud.training import service
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_protocol.identifiers import model_name

router = APIRouter(prefix="/v1", tags=["ship"])


class BundlesAnswer(BaseModel):
    """Bundles that are being taken in."""

    job: int = Field(description="Verifies and registers; releases and rolls out if asked to.")
    model: str
    version: str


@router.post("/bundles", status_code=202, dependencies=allow(Permission.MAKE, model_in_body=True))
def hand_in(
    hub: Hub,
    asker: Asker,
    archive: UploadFile,
    name: Annotated[str, Form(description="Of the model; it is made if it does not exist.")],
    to: Annotated[
        str, Form(description="Devices to ship to: `all`, `device:a,b`, …; empty: only register.")
    ] = "",
    strategy: Annotated[Literal["direct", "staged", "canary"], Form()] = "direct",
) -> BundlesAnswer:
    """Register verified bundles: one tar of folders `0/`, `1/`, … with manifest and blobs.

    Every digest is checked, and every variant must reproduce its golden vectors on the hub's own
    runtime. To ship them at once needs the permissions to release and to operate as well.
    """
    check(asker, Permission.MAKE, name)
    if to:
        for permission in (Permission.RELEASE, Permission.OPERATE):
            check(asker, permission, name)
    model_name(name)
    with on_disk(archive, hub.settings.home / "uploads") as path:
        digest = hub.store.put_file(path)
    now = hub.clock()
    with hub.database.write() as session:
        if to and not groups.select(session, to):
            raise ConflictError(f"no enrolled device matches {to!r}")
        ship = service.Shipment(to, strategy) if to else None
        job = service.start_bundles(session, name, digest, ship, now)
    hub.wake()
    return BundlesAnswer(job=job.id, model=name, version=job.arguments["version"])
