"""Renewing a device's certificate: the device shows that it holds its key, and gets a new one.

Over HTTPS and without a client certificate, so that a device whose certificate has long expired can
do it too. Rules:

1. The request is signed over a challenge that the hub has just made, by the device's anchor if it
   has one, else by the key of a certificate that is still good (or expired, see rule 3).
2. A key that was replaced or revoked renews nothing. Whoever asks with it is not the device that
   has renewed since: an incident is opened, because one of the two is a copy.
3. How long after its end a certificate may still be renewed is a setting. A revoked device never.
4. The certificate before stays good until the new one has been seen (`identity.certificates`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Certificate, Device, DeviceIdentity, DeviceState
from edgefleet_cloud.fleet import refusals
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.identity import certificates, signatures
from edgefleet_protocol import statements

# Between the challenge and the request are two messages.
CHALLENGE_LIFE_S = 300.0
CLONED = "cloned-device"


@dataclass(frozen=True)
class RenewalRequest:
    """What a device sends; untrusted.

    Attributes:
        csr: certificate signing request for the new key, PEM.
        nonce: the hub's challenge.
        signature: over `statements.signed_renewal`.
    """

    device: str
    csr: str
    nonce: bytes
    signature: bytes


@dataclass(frozen=True)
class Renewed:
    """A new certificate, and the authorities that the hub trusts; PEM."""

    certificate: str
    ca: str


@dataclass(frozen=True)
class Refused:
    """The device gets no certificate, for this reason; what was noted of it is to be kept."""

    reason: str


def renew(
    session: Session, services: Services, request: RenewalRequest, now: float
) -> Renewed | Refused:
    """Give a device a new certificate.

    Args:
        session: in a write transaction, to be committed even after a refusal.
        services: sign, and know the settings.
        request: untrusted.
        now: the time.

    Raises:
        InvalidError: if the signing request is refused.
    """
    again = "ask for a challenge and sign it at once"
    age_s = services.authority.freshness.age_s("renewal", request.device, request.nonce, now)
    if age_s is None or age_s > CHALLENGE_LIFE_S:
        return Refused(f"the challenge is not one of this hub's, or too old; {again}")
    device = session.get(Device, request.device)
    if device is None or device.state != DeviceState.ENROLLED:
        return Refused(
            f"device {request.device[:64]!r} is not enrolled here (any more); enrol it again"
        )
    known = session.scalars(
        select(Certificate)
        .where(Certificate.device_id == device.id)
        .order_by(Certificate.issued_at.desc())
    ).all()
    signer = _signer(session, known, request)
    if signer is None:
        return Refused("the request is not signed by a key of this device")
    if signer.ended_at is not None:
        _alarm(session, device, signer, now)
        return Refused(
            f"the certificate of this key has been {signer.ended}; if this is the true device,"
            " enrol it again"
        )
    expired_s = now - signer.expires_at
    if expired_s > services.settings.renew_expired_s:
        return Refused(
            f"the certificate expired {expired_s / 86_400:.0f} days ago, longer than this hub"
            " allows (renew_expired_s); enrol the device again"
        )
    return _issue(session, services, device, signer, request, now)


def _signer(
    session: Session, known: Sequence[Certificate], request: RenewalRequest
) -> Certificate | None:
    """Return the certificate whose key, or whose device's anchor, has signed; good ones first."""
    signed = statements.signed_renewal(request.nonce, request.csr.encode())
    identity = session.get(DeviceIdentity, request.device)
    ordered = sorted(known, key=lambda one: one.ended_at is not None)
    if identity is not None and identity.anchor:
        holds = signatures.is_signed(identity.anchor, request.signature, signed)
        return ordered[0] if holds and ordered else None
    for certificate in ordered:
        # One from before keys were on record has none.
        key = certificate.public_key
        if key and signatures.is_signed(key, request.signature, signed):
            return certificate
    return None


def _issue(
    session: Session,
    services: Services,
    device: Device,
    signer: Certificate,
    request: RenewalRequest,
    now: float,
) -> Renewed:
    issued = services.authority.issue_device(
        request.csr.encode(), device.id, services.settings.certificate_ttl_s
    )
    before = device.certificate_serial
    identity = session.get(DeviceIdentity, device.id)
    if identity is None or not identity.anchor:
        # The anchor says nothing of which certificates the device holds.
        certificates.see(session, signer, now)
    certificates.end(session, device.id, certificates.SUPERSEDED, now, but=signer.serial)
    certificates.record(session, device, issued, now)
    with acting(Actor(device.id, "device")):
        audit.record(
            session,
            "device.renew",
            device.id,
            now,
            before={"certificate": before},
            after={"certificate": issued.serial, "expires_at": issued.expires_at},
        )
    return Renewed(issued.certificate_pem.decode(), services.authority.ca_pem.decode())


def _alarm(session: Session, device: Device, signer: Certificate, now: float) -> None:
    text = (
        f"a renewal for {device.id!r} was signed with the key of certificate {signer.serial}, which"
        f" was {signer.ended}: either an old copy of the device's storage runs somewhere, or a copy"
        " has renewed in its place. Find out which is the true one, revoke, and enrol it again"
    )
    refusals.alarm(session, CLONED, device.id, signer.serial, text, now)
