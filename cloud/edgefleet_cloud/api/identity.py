"""Who is a device, over HTTP: serial numbers, certificates and their renewal.

Devices have no token: what they ask for here without one is answered by their expected serial
number, or by a signature of their key. Revocation lists are public.
"""

import base64
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from edgefleet_cloud.api.context import Hub, allow
from edgefleet_cloud.api.devices import (
    EnrolFacts,
    GrantAnswer,
    Labels,
    Word,
    bytes_of,
    enrolment_request,
)
from edgefleet_cloud.errors import DeniedError
from edgefleet_cloud.fleet import authorities, expected, identities, renewal
from edgefleet_cloud.fleet.expected import Expected, Waiting
from edgefleet_cloud.fleet.renewal import Refused, RenewalRequest
from edgefleet_cloud.trust.identity import crl
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["devices"])

Serial = Annotated[str, Field(min_length=1, max_length=expected.MAX_SERIAL_LENGTH)]


class SerialBody(EnrolFacts):
    """What a device sends to be let in by its serial number."""

    serial: Serial


class WaitingAnswer(BaseModel):
    """A person has to accept the key first; the same request may then be sent again."""

    waits_for: str = "approval"
    key: str = Field(description="Fingerprint of the key that asked, to compare and accept.")


class ExpectedBody(BaseModel):
    """A serial number that may enrol once."""

    serial: Serial
    device: str = Field("", max_length=64, description="Its id; empty for `sn-SERIAL`.")
    labels: Labels = Field(default_factory=dict)
    board: Word = ""
    key: str = Field(
        "", max_length=64, description="Fingerprint of the only key that may ask; empty for any."
    )
    approval: bool | None = Field(
        None, description="Whether a person accepts the key that asked; by default, without `key`."
    )


class ExpectedAnswer(BaseModel):
    """A serial number, and what has come of it."""

    serial: str
    device: str
    state: str = Field(description="expected, asking, accepted, enrolled or expired.")
    labels: Labels
    board: str
    key: str
    approval: bool
    asked_key: str = Field(description="Fingerprint of the key that asked.")
    asked_at: float | None
    expires_at: float


class AcceptBody(BaseModel):
    """The key that a person has compared with what the device shows."""

    serial: Serial
    key: str = Field(min_length=16, max_length=64, description="Fingerprint, or how it begins.")


class ForgetBody(BaseModel):
    """A serial number that is not to enrol (again)."""

    serial: Serial


class ChallengeBody(BaseModel):
    """A device that wants to renew its certificate."""

    device: str = Field(min_length=1, max_length=64)


class ChallengeAnswer(BaseModel):
    """What has to be signed along."""

    nonce: str = Field(description="16 bytes, base64.")


class RenewBody(BaseModel):
    """A device's request for a new certificate."""

    device: str = Field(min_length=1, max_length=64)
    csr: str = Field(max_length=16_384, description="Certificate signing request, PEM.")
    nonce: str = Field(max_length=64, description="As the challenge gave it.")
    signature: str = Field(max_length=200, description="By the device's key, base64.")


class RenewAnswer(BaseModel):
    """The new certificate; the one before stays good until this one has been used."""

    certificate: str = Field(description="Of the device, PEM.")
    ca: str = Field(description="Of the hub's authorities, PEM, the one that issues first.")


class CertificateAnswer(BaseModel):
    """A certificate that a device was given."""

    serial: str
    issuer: str = Field(description="Fingerprint of the authority.")
    issued_at: float
    expires_at: float
    seen_at: float | None = Field(description="When the device first came with it.")
    ended_at: float | None
    ended: str = Field(description="revoked, replaced or superseded; empty while it is good.")


class IdentityAnswer(BaseModel):
    """What a device is known by, and what it has sworn to."""

    device: str
    key: str = Field(description="Where its key lives: file, tpm or pkcs11.")
    anchor: str = Field(description="Fingerprint of the key in its TPM or token; empty if none.")
    authorities: list[str] = Field(description="Fingerprints that it said it trusts.")
    statement: dict[str, Any] | None = Field(description="Its newest signed statement.")
    certificates: list[CertificateAnswer]


class AuthorityAnswer(BaseModel):
    """A certificate authority of the hub."""

    fingerprint: str
    issues: bool = Field(description="Whether it signs new certificates.")
    expires_at: float
    in_force: bool = Field(description="Whether the signed metadata tells devices to trust it.")
    unknown_to: list[str] = Field(
        description="Enrolled devices that have not said that they trust it."
    )
    needed_by: list[str] = Field(
        description="Enrolled devices whose good certificates are all of it."
    )


class RetireBody(BaseModel):
    """Which authority is to be trusted no more."""

    fingerprint: str = Field(min_length=64, max_length=64)
    force: bool = Field(False, description="Although devices depend on it.")


@router.get("/ca/crl", response_class=Response)
def revocation_lists(hub: Hub) -> Response:
    """Give the certificate revocation lists of the hub's authorities (PEM)."""
    with hub.database.read() as session:
        lists = crl.current(session, hub.authority, hub.clock())
    return Response(lists, media_type="application/x-pem-file")


@router.post("/enrol/serial", responses={202: {"model": WaitingAnswer}})
def enrol_by_serial(hub: Hub, body: SerialBody, response: Response) -> GrantAnswer | WaitingAnswer:
    """Let a device in by its expected serial number; 202 while a person has to accept its key."""
    request = enrolment_request(body, device="", secret="")
    with hub.database.write() as session:
        outcome = expected.ask(session, hub, body.serial, request, hub.clock())
    if isinstance(outcome, Refused):
        raise DeniedError(outcome.reason)
    if isinstance(outcome, Waiting):
        response.status_code = 202
        return WaitingAnswer(key=outcome.key)
    hub.wake()
    return GrantAnswer(**asdict(outcome))


@router.post("/renew/challenge")
def renewal_challenge(hub: Hub, body: ChallengeBody) -> ChallengeAnswer:
    """Give what a renewal has to be signed over. Says nothing of whether there is such a device."""
    nonce = hub.authority.freshness.issue("renewal", body.device, hub.clock())
    return ChallengeAnswer(nonce=base64.b64encode(nonce).decode())


@router.post("/renew")
def renew(hub: Hub, body: RenewBody) -> RenewAnswer:
    """Give a device a new certificate, for a signature of its key."""
    request = RenewalRequest(
        body.device,
        body.csr,
        bytes_of("nonce", body.nonce),
        bytes_of("signature", body.signature),
    )
    with hub.database.write() as session:
        outcome = renewal.renew(session, hub, request, hub.clock())
    if isinstance(outcome, Refused):
        raise DeniedError(outcome.reason)
    return RenewAnswer(**asdict(outcome))


@router.post("/devices/expected", dependencies=allow(Permission.OPERATE), status_code=201)
def expect_devices(
    hub: Hub, body: Annotated[list[ExpectedBody], Field(max_length=expected.MAX_AT_ONCE)]
) -> list[ExpectedAnswer]:
    """Announce serial numbers, each of which may enrol once. All or none are taken."""
    announced = [Expected(**one.model_dump()) for one in body]
    with hub.database.write() as session:
        rows = expected.announce(session, announced, hub.settings.expect_ttl_s, hub.clock())
    return [ExpectedAnswer(**row) for row in rows]


@router.get("/devices/expected", dependencies=allow(Permission.READ))
def list_expected(hub: Hub) -> list[ExpectedAnswer]:
    """List announced serial numbers and what has come of them."""
    with hub.database.read() as session:
        rows = expected.listing(session, hub.clock())
    return [ExpectedAnswer(**row) for row in rows]


@router.post("/devices/expected/accept", dependencies=allow(Permission.OPERATE))
def accept_serial(hub: Hub, body: AcceptBody) -> ExpectedAnswer:
    """Accept the key that has asked for a serial number; the device then gets its certificate."""
    with hub.database.write() as session:
        row = expected.accept(session, body.serial, body.key, hub.clock())
    return ExpectedAnswer(**row)


@router.post("/devices/expected/forget", dependencies=allow(Permission.OPERATE))
def forget_serial(hub: Hub, body: ForgetBody) -> list[ExpectedAnswer]:
    """Expect a serial number no more; a device that has enrolled with it stays enrolled."""
    with hub.database.write() as session:
        expected.forget(session, body.serial, hub.clock())
        rows = expected.listing(session, hub.clock())
    return [ExpectedAnswer(**row) for row in rows]


@router.get("/devices/{device_id}/identity", dependencies=allow(Permission.READ))
def show_identity(hub: Hub, device_id: str) -> IdentityAnswer:
    """Show a device's certificates, where its key lives, and what it has sworn to."""
    with hub.database.read() as session:
        return IdentityAnswer(**identities.describe(session, device_id))


@router.get("/trust/authorities", dependencies=allow(Permission.READ))
def list_authorities(hub: Hub) -> list[AuthorityAnswer]:
    """List the hub's certificate authorities, the one that issues first."""
    return [AuthorityAnswer(**row) for row in authorities.listing(hub)]


@router.post("/trust/authorities", dependencies=allow(Permission.ADMINISTER), status_code=201)
def rotate_authority(hub: Hub) -> list[AuthorityAnswer]:
    """Make a new authority, which issues at once, and draft the list that devices are to trust."""
    return [AuthorityAnswer(**row) for row in authorities.rotate(hub)]


@router.post("/trust/authorities/retire", dependencies=allow(Permission.ADMINISTER))
def retire_authority(hub: Hub, body: RetireBody) -> list[AuthorityAnswer]:
    """Stop trusting an older authority, delete its key, and draft the list without it."""
    rows = authorities.retire(hub, body.fingerprint, force=body.force)
    return [AuthorityAnswer(**row) for row in rows]
