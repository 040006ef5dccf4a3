"""Signing metadata: what is signed is serialised once, and stored as it was signed.

TUF signs the canonical JSON of the `signed` part. python-tuf writes files in another form, so it
serialises everything twice and in Python; here the file holds the very bytes that were signed
wherever those are JSON as well.
"""

import datetime
from collections.abc import Iterable
from typing import Any

import msgspec
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signature, Signer
from tuf.api.metadata import MetaFile, Signed

from edgefleet_protocol.identifiers import digest_of

DAY_S = 86_400.0


def moment(at: float) -> datetime.datetime:
    """Return Unix time `at` as TUF writes it: UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def sign(signed: Signed, signers: Iterable[Signer]) -> bytes:
    """Return a metadata file with the signature of each signer."""
    return sign_fields(signed.to_dict(), signers)


def sign_fields(fields: dict[str, Any], signers: Iterable[Signer]) -> bytes:
    """Return a metadata file over the fields of a `signed` part.

    Args:
        fields: as `Signed.to_dict` gives them; no fractions, which canonical JSON does not have.
        signers: whose signatures to add.
    """
    canonical, stored = _forms(fields)
    return envelope(stored, [signer.sign(canonical) for signer in signers])


def envelope(stored: bytes, signatures: Iterable[Signature]) -> bytes:
    """Return a metadata file of a serialised `signed` part and its signatures."""
    listed = msgspec.json.encode([signature.to_dict() for signature in signatures])
    return b'{"signatures":' + listed + b',"signed":' + stored + b"}"


def with_signatures(signed: Signed, signatures: Iterable[Signature]) -> bytes:
    """Return a metadata file with signatures that exist already."""
    return envelope(_forms(signed.to_dict())[1], signatures)


def canonical_of(signed: Signed) -> bytes:
    """Return what is signed of a file."""
    return _forms(signed.to_dict())[0]


def meta_of(version: int, payload: bytes) -> MetaFile:
    """Return what a snapshot or timestamp says of a file."""
    return MetaFile(version, len(payload), {"sha256": digest_of(payload)})


def _forms(fields: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return what is signed and what is stored.

    Both are the same, sorted and without blanks, unless a text has a control character: JSON
    escapes it, canonical JSON does not. Any escape is then a backslash before another letter than
    a quote or a backslash; texts with a backslash take the slow way.
    """
    stored = msgspec.json.encode(fields, order="sorted")
    if b"\\" not in stored:
        return stored, stored
    canonical = encode_canonical(fields)
    assert canonical is not None  # no output function was given
    return canonical.encode(), stored
