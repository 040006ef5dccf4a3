"""The log of decisions over HTTP, and the files that `edgefleet verify` asks for."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Hub, RowId, allow
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.trust.audit import chain, checkpoints, export, log, origin
from edgefleet_cloud.trust.audit.export import Wanted
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["audit"])

Text = Annotated[str | None, Query(max_length=chain.MAX_NAME_LENGTH)]
Time = Annotated[float | None, Query(allow_inf_nan=False)]


class EntryAnswer(BaseModel):
    """One decision."""

    number: int
    at: float
    actor: str
    kind: str = Field(description="person, service, device or hub.")
    action: str = Field(description="noun.verb")
    subject: str
    before: Any = Field(description="What was changed, as it was; null where nothing was.")
    after: Any = Field(description="As it is since; long values by digest and length.")
    reason: str
    digest: str = Field(description="Of the chain, up to and with this entry.")


class CheckpointAnswer(BaseModel):
    """A signature under the chain at one entry; keep it where the hub cannot change it."""

    model_config = ConfigDict(from_attributes=True)
    number: int
    digest: str
    at: int
    keyid: str
    signature: str = Field(description="Ed25519, hexadecimal; see docs/audit.md.")


class OriginAnswer(BaseModel):
    """Where a file belongs. Nothing of it is signed: whoever asks verifies it."""

    manifests: list[str] = Field(description="Digests of the manifests that name the file.")


@router.get("/audit", dependencies=allow(Permission.READ))
def list_entries(
    hub: Hub,
    since: Time = None,
    until: Time = None,
    actor: Text = None,
    action: Text = None,
    subject: Text = None,
    below: Annotated[
        int | None, Query(ge=1, description="Only entries with lower numbers.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EntryAnswer]:
    """List decisions, newest first."""
    wanted = Wanted(since, until, actor, action, subject)
    with hub.database.read() as session:
        found = log.find(session, wanted.condition(), below=below, limit=limit)
        return [_entry(row.line, row.digest) for row in found]


@router.get("/audit/checkpoint", dependencies=allow(Permission.READ))
def show_checkpoint(hub: Hub) -> CheckpointAnswer:
    """Show the newest signature under the log."""
    with hub.database.read() as session:
        newest = checkpoints.newest(session)
    if newest is None:
        raise ConflictError("nothing of the log is signed yet")
    return CheckpointAnswer.model_validate(newest)


@router.get("/audit/key", response_class=Response, dependencies=allow(Permission.READ))
def show_key(hub: Hub) -> Response:
    """Return the public key that signs the log, PEM."""
    return Response(hub.audit.key.public_pem, media_type="application/x-pem-file")


@router.get("/audit/export", response_class=Response, dependencies=allow(Permission.READ))
def export_log(
    hub: Hub,
    since: Time = None,
    until: Time = None,
    actor: Text = None,
    action: Text = None,
    subject: Text = None,
) -> StreamingResponse:
    """Return the log, signed up to now, as a file that is verified without a hub (docs/audit.md).

    Entries that were not asked for are replaced by their digests, so that a part is verified too.
    """
    if hub.audit.sign() is None:
        raise ConflictError("the log has no entry yet")
    wanted = Wanted(since, until, actor, action, subject)

    def lines() -> Iterator[str]:
        with hub.database.read() as session:
            yield from export.lines(session, wanted)

    return StreamingResponse(lines(), media_type="application/jsonl")


@router.get("/audit/{number}", dependencies=allow(Permission.READ))
def show_entry(hub: Hub, number: RowId) -> EntryAnswer:
    """Show one decision."""
    with hub.database.read() as session:
        row = log.get(session, number)
        return _entry(row.line, row.digest)


@router.get("/artifacts", dependencies=allow(Permission.CHECK))
def list_artifacts(hub: Hub) -> list[str]:
    """List the digests of all manifests of releases, and of the statements about them."""
    with hub.database.read() as session:
        return origin.listed(session)


@router.get("/artifacts/{digest}", dependencies=allow(Permission.CHECK))
def find_artifact(hub: Hub, digest: str) -> OriginAnswer:
    """Tell which manifests name a file: a model as used, or as sent."""
    with hub.database.read() as session:
        return OriginAnswer(manifests=origin.manifests_with(session, hub.store, digest))


@router.get(
    "/artifacts/{digest}/content", response_class=Response, dependencies=allow(Permission.CHECK)
)
def read_artifact(hub: Hub, digest: str) -> Response:
    """Return a manifest, or the signed statement of where one came from."""
    with hub.database.read() as session:
        data = origin.read(session, hub.store, digest)
    return Response(data, media_type="application/json")


def _entry(line: str, digest: str) -> EntryAnswer:
    values = msgspec.structs.asdict(chain.decode(line))
    del values["v"]
    return EntryAnswer(**values, digest=digest)
