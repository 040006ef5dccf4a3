"""Letting a device into the fleet, by a one-time claim.

The operator makes a claim and carries its token to the device; the device makes its own key and
redeems the token for a certificate. Rules:

1. A token works once and for a limited time; only the digest of its secret is kept. A new claim
   for a device makes its earlier ones void.
2. The token names the hub's certificate by its fingerprint, so that the device can know the hub
   before it trusts it.
3. Everything is checked before the claim is used up: a refused request leaves it usable.
4. A device that enrols again starts from nothing: its new store counts its states from the
   beginning, and all of its earlier certificates are revoked.
5. A key in a TPM or token (the *anchor*) signs the request too. From then on renewals and
   statements have to be signed by it; the key of the certificate alone is not enough.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgefleet_cloud.broker import policy
from edgefleet_cloud.database.models import Claim, Device, DeviceIdentity, DeviceState
from edgefleet_cloud.errors import DeniedError, InvalidError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.identity import certificates, signatures
from edgefleet_protocol import identifiers, statements
from edgefleet_protocol.errors import MalformedError

CLAIM_FORM = "ef1"
MAX_LABELS = 32
MAX_LABEL_LENGTH = 64


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a device sends to be let in.

    Attributes:
        device: the id that the token names.
        secret: from the token.
        csr: certificate signing request, PEM.
        runtimes: name → version, as the device has them.
        memory_bytes: of the machine.
        anchor: public key in the device's TPM or token (SubjectPublicKeyInfo, DER); empty if the
            key of the request is the only one.
        anchor_kind: `file`, `tpm` or `pkcs11`.
        proof: by the anchor, over `statements.signed_enrolment`.
    """

    device: str
    secret: str
    csr: str
    board: str
    runtimes: Mapping[str, str]
    memory_bytes: int
    anchor: bytes = b""
    anchor_kind: str = "file"
    proof: bytes = b""


@dataclass(frozen=True)
class Grant:
    """What an enrolled device is given; the texts are PEM and TUF JSON."""

    device: str
    certificate: str
    ca: str
    mqtt_host: str
    mqtt_port: int
    image_root: str
    director_root: str


def create_claim(
    session: Session,
    device_id: str,
    labels: Mapping[str, str],
    ttl_s: float,
    fingerprint: str,
    now: float,
) -> str:
    """Expect a device, and return the token that lets it in.

    Args:
        session: in a write transaction.
        device_id: a new one, or one that shall enrol again.
        labels: replace the device's labels, unless empty.
        ttl_s: life of the token.
        fingerprint: of the hub's CA certificate.
        now: the time.

    Raises:
        InvalidError: if the id or a label has not the allowed form.
    """
    check_device_id(device_id)
    check_labels(labels)
    device = session.get(Device, device_id)
    if device is None:
        device = Device(id=device_id, state=DeviceState.CLAIMED, labels={}, created_at=now)
        session.add(device)
        session.flush()
    if labels:
        device.labels = dict(labels)
    session.execute(
        update(Claim)
        .where(Claim.device_id == device_id, Claim.used_at.is_(None), Claim.expires_at > now)
        .values(expires_at=now)
    )
    secret = secrets.token_urlsafe(32)
    session.add(
        Claim(
            secret_digest=identifiers.digest_of(secret.encode()),
            device_id=device_id,
            expires_at=now + ttl_s,
            created_at=now,
        )
    )
    session.flush()
    after = {"labels": device.labels, "expires_at": now + ttl_s}
    audit.record(session, "device.claim", device_id, now, after=after)
    return f"{CLAIM_FORM}.{device_id}.{secret}.{fingerprint}"


def redeem(session: Session, services: Services, request: EnrolmentRequest, now: float) -> Grant:
    """Let a device in.

    Args:
        session: in a write transaction; the claim is used up only if it commits.
        services: sign, and know the roots and addresses.
        request: untrusted.
        now: the time.

    Raises:
        DeniedError: if the claim is unknown, for another device, used or expired.
        InvalidError: if the certificate request is refused.
    """
    claim = _claim(session, request, now)
    device = session.get_one(Device, claim.device_id)
    grant = let_in(session, services, device, request, now)
    claim.used_at = now
    return grant


def let_in(
    session: Session,
    services: Services,
    device: Device,
    request: EnrolmentRequest,
    now: float,
    *,
    named: str | None = None,
) -> Grant:
    """Give a device its certificate; whoever calls has found that it may have one.

    Args:
        session: in a write transaction.
        services: sign, and know the roots and addresses.
        device: that is let in.
        request: untrusted; the certificate is for the key of its signing request.
        now: the time.
        named: name that the signing request must carry; None for the device's id.

    Raises:
        InvalidError: if the signing request or the proof of the anchor is refused.
    """
    if request.anchor:
        _check_anchor(request)
    issued = services.authority.issue_device(
        request.csr.encode(), device.id, services.settings.certificate_ttl_s, named=named
    )
    before, device.state = device.state, DeviceState.ENROLLED
    device.board = request.board
    device.runtimes = dict(request.runtimes)
    device.memory_bytes = request.memory_bytes
    device.boot, device.sequence, device.reported = 0, 0, {}
    certificates.end(session, device.id, certificates.REVOKED, now)
    certificates.record(session, device, issued, now)
    session.merge(
        DeviceIdentity(
            device_id=device.id,
            anchor=request.anchor,
            anchor_kind=request.anchor_kind,
            since=now,
            counter=0,
            stores=[],
        )
    )
    # Even an empty assignment is signed: it tells the device that the hub knows it.
    assignments.raise_sequence(session, device.id)
    with acting(Actor(device.id, "device")):
        audit.record(
            session,
            "device.enrol",
            device.id,
            now,
            before={"state": before},
            after={
                "state": device.state,
                "board": device.board,
                "certificate": issued.serial,
                "expires_at": issued.expires_at,
                "key": request.anchor_kind,
            },
        )
    return Grant(
        device=device.id,
        certificate=issued.certificate_pem.decode(),
        ca=services.authority.ca_pem.decode(),
        mqtt_host=services.settings.devices_mqtt_host,
        mqtt_port=services.settings.mqtt_port,
        image_root=services.images.root_1.decode(),
        director_root=services.director.root_1.decode(),
    )


def check_device_id(device_id: str) -> None:
    """Refuse what cannot be the name of a device.

    Raises:
        InvalidError: saying what was expected.
    """
    try:
        identifiers.device_id(device_id)
    except MalformedError as error:
        raise InvalidError(str(error)) from error
    if device_id.lower() in policy.RESERVED:
        raise InvalidError(f"{device_id!r} is the name of the hub itself; choose another")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that are too many or too long, or whose key cannot stand in a group query.

    Raises:
        InvalidError: naming the first such label.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidError(f"a device has at most {MAX_LABELS} labels; {len(labels)} were given")
    for key, value in labels.items():
        text = f"{key}={value}"
        if not key or "=" in key or not text.isprintable():
            raise InvalidError(f"{text[:120]!r} is no label: expected KEY=VALUE, printable")
        if max(len(key), len(value)) > MAX_LABEL_LENGTH:
            raise InvalidError(
                f"label {key[:80]!r}: key and value have at most {MAX_LABEL_LENGTH} characters"
            )


def _check_anchor(request: EnrolmentRequest) -> None:
    proven = signatures.is_signed(
        request.anchor, request.proof, statements.signed_enrolment(request.csr.encode())
    )
    if not proven:
        raise InvalidError(
            f"device {request.device[:64]!r} named a {request.anchor_kind} key and did not sign"
            " its request with it"
        )


def _claim(session: Session, request: EnrolmentRequest, now: float) -> Claim:
    again = f"ask for a new one: edgefleet devices claim {request.device[:64]}"
    digest = identifiers.digest_of(request.secret.encode())
    # Locked where the database can, so that two requests cannot use one claim.
    claim = session.scalar(select(Claim).where(Claim.secret_digest == digest).with_for_update())
    if claim is None or claim.device_id != request.device:
        raise DeniedError(f"this claim token is not known for {request.device[:64]!r}; {again}")
    if claim.used_at is not None:
        raise DeniedError(f"this claim token was used already; {again}")
    if claim.expires_at <= now:
        raise DeniedError(f"this claim token is not valid any more; {again}")
    return claim
