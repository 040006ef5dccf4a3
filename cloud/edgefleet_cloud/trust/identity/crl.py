"""Certificate revocation lists (RFC 5280), for brokers that ask no hub.

One list an authority, each signed by its own key, as PEM one after another: what has been revoked,
and what a newer certificate has replaced, until it expires by itself.
"""

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Certificate
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_cloud.trust.identity.generations import BACKDATE_S, DAY_S, Generation, moment

# A broker that cannot get a newer list refuses everybody after so long.
LIFE_S = 30 * DAY_S
_REASONS = {
    certificates.REVOKED: x509.ReasonFlags.cessation_of_operation,
    certificates.REPLACED: x509.ReasonFlags.superseded,
    certificates.SUPERSEDED: x509.ReasonFlags.superseded,
}


def current(session: Session, authority: Authority, now: float) -> bytes:
    """Return the lists of all authorities that the hub trusts, PEM."""
    ended = certificates.ended(session, authority.fingerprints, now)
    return b"".join(build(one, ended, now) for one in authority.held)


def build(signer: Generation, ended: Sequence[Certificate], now: float) -> bytes:
    """Return the list of one authority, PEM.

    Args:
        signer: whose list it is; what others have issued is left out.
        ended: certificates.
        now: Unix seconds; also the number of the list, so that a later one is higher.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(moment(now - BACKDATE_S))
        .next_update(moment(now + LIFE_S))
        .add_extension(x509.CRLNumber(int(now)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
            critical=False,
        )
    )
    for certificate in ended:
        if certificate.issuer == signer.fingerprint and certificate.ended_at is not None:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(certificate.serial, 16))
                .revocation_date(moment(certificate.ended_at))
                .add_extension(x509.CRLReason(_REASONS[certificate.ended]), critical=False)
                .build()
            )
    signed = builder.sign(signer.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)
