"""Verifying what a device has signed with its own key."""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_der_public_key

from edgefleet_cloud.errors import InvalidError

# A P-256 key has 91 bytes, an Ed25519 key 44.
MAX_KEY_BYTES = 200


def is_signed(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Tell whether the holder of a key has signed this.

    Args:
        public_key: SubjectPublicKeyInfo, DER.
        signature: ECDSA with SHA-256 (DER) for a P-256 key, else Ed25519.
        data: that was signed.

    Raises:
        InvalidError: if the key is none.
    """
    key = _load(public_key)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _load(public_key: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    problem = "expected P-256 or Ed25519"
    if len(public_key) <= MAX_KEY_BYTES:
        try:
            key = load_der_public_key(public_key)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidError(f"this is no public key that can be read: {error}") from error
        if isinstance(key, ed25519.Ed25519PublicKey):
            return key
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
        problem = f"this is a {type(key).__name__}; {problem}"
    raise InvalidError(f"a device's key cannot be used: {problem}")
