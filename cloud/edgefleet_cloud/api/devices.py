"""The fleet over HTTP: devices, their enrolment, and what they refused.

Two endpoints take no API token: `GET /v1/ca`, because a device checks the answer against the
fingerprint in its claim token, and `POST /v1/enrol`, whose credential is that token. `identity` has
the other ways in.
"""

import base64
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StringConstraints

from edgefleet_cloud.api.context import Hub, allow
from edgefleet_cloud.database.models import DeviceState
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.fleet import devices, enrolment
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["devices"])

# As `messages.Name`, kept to what can stand in a terminal and a database.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+-]*$", max_length=64)]
Labels = Annotated[
    dict[str, str], Field(description="Free key → value, for groups: `site` → `north`.")
]
MAX_SAFE_BYTES = 2**53


class ClaimBody(BaseModel):
    """A device that is to be let in."""

    device: str = Field(description="1 to 64 letters, digits, '_' or '-'; also its MQTT client id.")
    labels: Labels = Field(default_factory=dict)


class ClaimAnswer(BaseModel):
    """The token for the device. It is shown this once and works once."""

    device: str
    token: str = Field(description="For `edgefleet-agent enroll`.")
    expires_at: float


class EnrolFacts(BaseModel):
    """What a device says of itself and its keys when it asks to be let in."""

    csr: str = Field(max_length=16_384, description="Certificate signing request, PEM.")
    board: Word = ""
    runtimes: dict[Word, Word] = Field(default_factory=dict, max_length=16)
    memory_bytes: int = Field(0, ge=0, le=MAX_SAFE_BYTES)
    anchor: str = Field(
        "", max_length=300, description="Public key in a TPM or token: SPKI, DER, base64."
    )
    anchor_kind: Literal["file", "tpm", "pkcs11"] = "file"
    proof: str = Field(
        "", max_length=200, description="Signature over the request by that key, base64."
    )


class EnrolBody(EnrolFacts):
    """What a device with a claim token sends to be let in."""

    device: str = Field(max_length=64)
    secret: str = Field(max_length=128, description="Third part of the claim token.")


class GrantAnswer(BaseModel):
    """What an enrolled device needs to connect and to verify what it is sent."""

    device: str
    certificate: str = Field(description="Of the device, PEM.")
    ca: str = Field(description="Of the hub's authorities, PEM, the one that issues first.")
    mqtt_host: str
    mqtt_port: int
    image_root: str = Field(description="Root version 1 of the image repository, TUF JSON.")
    director_root: str = Field(description="Root version 1 of the director, TUF JSON.")


class DeviceAnswer(BaseModel):
    """A device in short."""

    id: str
    state: DeviceState
    online: bool = Field(description="Whether it was heard within the last 90 s.")
    board: str
    labels: Labels
    agent_version: str
    serving: list[str] = Field(description="Models that answer now, as it last reported.")
    last_seen_at: float | None
    silent_s: float | None = Field(description="Seconds since it was last heard.")


class AssignmentAnswer(BaseModel):
    """How far the device's assignment has come, by sequence."""

    wanted: int
    signed: int
    published: bool = Field(description="Whether the broker has the newest signed one.")
    accepted: int = Field(description="As the device last reported.")
    expires_at: float | None


class ModelOnDevice(BaseModel):
    """One model on one device, as wanted and as reported."""

    model: str
    desired: dict[str, Any] | None
    reported: dict[str, Any] | None
    in_sync: bool = Field(description="Whether the manifests' digests are equal.")


class DeviceDetail(DeviceAnswer):
    """Everything known of a device."""

    runtimes: dict[str, str]
    memory_bytes: int
    certificate_serial: str | None
    certificate_expires_at: float | None
    created_at: float
    assignment: AssignmentAnswer
    models: list[ModelOnDevice]
    attempts: list[dict[str, Any]] = Field(description="Newest update attempt of each model.")
    health: dict[str, Any] | None = Field(description="From its newest window report.")


class RefusalAnswer(BaseModel):
    """Something that a device would not take."""

    device: str
    what: str
    reason: str
    text: str
    digest: str
    at: float = Field(description="By the device's clock.")
    received_at: float


def enrolment_request(facts: EnrolFacts, *, device: str, secret: str) -> EnrolmentRequest:
    """Return a request to be let in, as the service takes it."""
    return EnrolmentRequest(
        device=device,
        secret=secret,
        csr=facts.csr,
        board=facts.board,
        runtimes=facts.runtimes,
        memory_bytes=facts.memory_bytes,
        anchor=bytes_of("anchor", facts.anchor),
        anchor_kind=facts.anchor_kind,
        proof=bytes_of("proof", facts.proof),
    )


def bytes_of(name: str, text: str) -> bytes:
    """Return bytes that travel as base64.

    Raises:
        InvalidError: if they do not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidError(f"{name}: this is no base64: {error}") from error


@router.get("/ca", response_class=Response)
def ca(hub: Hub) -> Response:
    """Give the certificates of the hub's authorities (PEM), the one that issues first."""
    return Response(hub.authority.ca_pem, media_type="application/x-pem-file")


@router.post("/enrol")
def enrol(hub: Hub, body: EnrolBody) -> GrantAnswer:
    """Let a device in: the claim token's secret and a signing request for a certificate."""
    request = enrolment_request(body, device=body.device, secret=body.secret)
    with hub.database.write() as session:
        grant = enrolment.redeem(session, hub, request, hub.clock())
    hub.wake()
    return GrantAnswer(**asdict(grant))


@router.post("/devices", dependencies=allow(Permission.OPERATE), status_code=201)
def claim_device(hub: Hub, body: ClaimBody) -> ClaimAnswer:
    """Expect a device, new or to be enrolled again, and get the token that lets it in."""
    now, ttl_s = hub.clock(), hub.settings.claim_ttl_s
    with hub.database.write() as session:
        token = enrolment.create_claim(
            session, body.device, body.labels, ttl_s, hub.authority.fingerprint, now
        )
    return ClaimAnswer(device=body.device, token=token, expires_at=now + ttl_s)


@router.get("/devices", dependencies=allow(Permission.READ))
def list_devices(
    hub: Hub,
    state: DeviceState | None = None,
    group: Annotated[
        str | None, Query(description="`all`, `device:a,b`, `label:site=north`, `board:rpi4`")
    ] = None,
) -> list[DeviceAnswer]:
    """List devices by id."""
    with hub.database.read() as session:
        rows = devices.listing(session, hub.clock(), group=group, state=state)
    return [DeviceAnswer(**row) for row in rows]


@router.get("/devices/{device_id}", dependencies=allow(Permission.READ))
def show_device(hub: Hub, device_id: str) -> DeviceDetail:
    """Show one device: desired beside reported, its health, and when its certificate ends."""
    with hub.database.read() as session:
        return DeviceDetail(**devices.describe(session, device_id, hub.clock()))


@router.put("/devices/{device_id}/labels", dependencies=allow(Permission.OPERATE))
def label_device(hub: Hub, device_id: str, labels: Labels) -> DeviceDetail:
    """Replace a device's labels."""
    with hub.database.write() as session:
        devices.relabel(session, device_id, labels, hub.clock())
        return DeviceDetail(**devices.describe(session, device_id, hub.clock()))


@router.post("/devices/{device_id}/revoke", dependencies=allow(Permission.OPERATE))
def revoke_device(hub: Hub, device_id: str) -> DeviceDetail:
    """Shut a device out: its connection is closed and its certificate accepted no more."""
    with hub.database.write() as session:
        devices.revoke(session, device_id, hub.clock())
        row = devices.describe(session, device_id, hub.clock())
    hub.wake()
    return DeviceDetail(**row)


@router.get("/refusals", dependencies=allow(Permission.READ))
def list_refusals(
    hub: Hub,
    device: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RefusalAnswer]:
    """List what devices refused, newest first."""
    with hub.database.read() as session:
        rows = devices.refusals(session, device_id=device, limit=limit)
    return [RefusalAnswer(**row) for row in rows]
