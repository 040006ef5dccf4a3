"""Shipping over HTTP: from a fitted model to running devices in one request."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet_cloud.api.context import Asker, Hub, allow, check
from edgefleet_cloud.api.policies import ORDER, Budget
from edgefleet_cloud.api.uploads import on_disk, read_upload
from edgefleet_cloud.datasets import content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import ConflictError, InvalidError
from edgefleet_cloud.fleet import groups
from edgefleet_cloud.training import service
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_converters import sources
from edgefleet_protocol.identifiers import model_name

router = APIRouter(prefix="/v1", tags=["ship"])
# It makes a version, decides on it, and brings it to devices.
SHIPPING = (Permission.MAKE, Permission.RELEASE, Permission.OPERATE)


class ShipOptions(BaseModel):
    """The form field `options` of a shipment, as JSON."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="Name of the model; it is made if it does not exist.")
    to: str = Field(description="Devices: `all`, `device:a,b`, `label:site=north`, `board:rpi4`.")
    label: str | None = Field(None, description="Column of the sample with the right answers.")
    strategy: Literal["direct", "staged", "canary"] = "direct"
    variants: list[str] | None = Field(None, description="To make; all that apply by default.")
    seed: int = Field(0, ge=0, lt=2**32)
    order: dict[str, Any] | None = Field(None, description=ORDER)
    budget: Budget = Field(Budget(), description="Of the model on a device.")


class ShipAnswer(BaseModel):
    """A shipment under way."""

    job: int = Field(description="Converts, registers, releases, and starts the rollout.")
    model: str
    version: str
    devices: int = Field(description="How many match now.")
    warning: str | None = Field(description="What the sender should know about the file's format.")


@router.post(
    "/ship",
    status_code=202,
    dependencies=allow(Permission.MAKE, Permission.RELEASE, Permission.OPERATE, model_in_body=True),
)
def ship(
    hub: Hub,
    asker: Asker,
    model: UploadFile,
    sample: UploadFile,
    options: Annotated[str, Form(description="`ShipOptions` as JSON.")],
) -> ShipAnswer:
    """Convert a fitted model, release it, and roll it out. Shipping is the operator's approval.

    A pickle (.joblib, .pkl) runs code when it is loaded. It is loaded only in a child process of
    the job, with the hub's rights: send none that you would not run there as a program.
    """
    wanted = _options(options)
    for permission in SHIPPING:
        check(asker, permission, wanted.name)
    model_name(wanted.name)
    service.check_variants(wanted.variants)
    folder = hub.settings.home / "uploads"
    with on_disk(model, folder) as path:
        service.check_filename(path.name)
        file = sources.recognise(path)
        filename, artifact = path.name, hub.store.put_file(path)
    prepared = content.prepare(hub.store, read_upload(sample, folder), wanted.label)
    now = hub.clock()
    with hub.database.write() as session:
        devices = groups.select(session, wanted.to)
        if not devices:
            raise ConflictError(
                f"no enrolled device matches {wanted.to!r}; enrol one with `edgefleet devices"
                " claim`"
            )
        dataset = datasets.add(
            session, prepared, name=f"{wanted.name[:57]}-sample", source=_source(sample), now=now
        )
        request = service.ImportRequest(
            model=wanted.name,
            artifact=artifact,
            filename=filename,
            sample=dataset.digest,
            variants=wanted.variants,
            seed=wanted.seed,
            ship=service.Shipment(wanted.to, wanted.strategy, wanted.order),
            budget=wanted.budget.value(),
        )
        job = service.start_import(session, request, now)
    hub.wake()
    return ShipAnswer(
        job=job.id,
        model=wanted.name,
        version=job.arguments["version"],
        devices=len(devices),
        warning=sources.PICKLE_WARNING if file.kind == "pickle" else None,
    )


def _options(text: str) -> ShipOptions:
    try:
        return ShipOptions.model_validate(json.loads(text))
    except ValidationError as error:
        parts = [
            f"{'.'.join(str(step) for step in item['loc'])}: {item['msg']}"
            for item in error.errors()
        ]
        raise InvalidError(f"options: {'; '.join(parts)}") from error
    except ValueError as error:
        raise InvalidError(f"options are no JSON: {error}") from error


def _source(upload: UploadFile) -> str:
    return f"file:{upload.filename}"
