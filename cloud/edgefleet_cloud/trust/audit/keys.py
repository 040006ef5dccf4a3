"""Ed25519 keys that the hub holds to sign by itself: of the log, and of provenance.

A folder holds `key.pem` (for the hub's user only) and `public.pem`, which may be given to anyone.
Rules:

1. A key is made where neither file is. A public key without its private one is a loss that
   somebody must see: move `public.pem` away to begin a new key, and keep it, since what the lost
   key has signed is verified with it.
2. Key ids are those of TUF metadata, so that the signed metadata can name the key.
"""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust import durable


class SigningKey:
    """A private key of the hub; open it with `SigningKey.open`.

    Attributes:
        keyid: of its public part.
        public_pem: its public part.
        signer: signs with it.
    """

    def __init__(self, signer: CryptoSigner, public_pem: str) -> None:
        self.signer = signer
        self.public_pem = public_pem

    @property
    def keyid(self) -> str:
        """The key's id."""
        return self.signer.public_key.keyid

    @classmethod
    def open(cls, folder: Path) -> "SigningKey":
        """Read the key in `folder`, or make one (rule 1).

        Raises:
            DamagedError: if the files cannot be read or do not belong together.
        """
        private, public = folder / "key.pem", folder / "public.pem"
        if not private.exists():
            if public.exists():
                raise DamagedError(
                    f"{private} is gone; restore it from a backup, or move {public} away to begin"
                    " a new key"
                )
            durable.write(
                private, CryptoSigner.generate_ed25519().private_bytes, mode=durable.PRIVATE
            )
        try:
            held = load_pem_private_key(private.read_bytes(), None)
            signer = CryptoSigner(held)
        except (OSError, ValueError, TypeError) as error:
            raise DamagedError(
                f"signing key {private} cannot be read ({error}); restore it from a backup"
            ) from error
        pem = held.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        if not public.exists():
            durable.write(public, pem, mode=durable.PUBLIC)
        elif public.read_bytes() != pem:
            raise DamagedError(f"{public} is not the public part of {private}")
        return cls(signer, pem.decode())


def public_key(pem: bytes | str) -> SSlibKey:
    """Return a public key as `public.pem` holds it.

    Raises:
        InvalidError: if it is no Ed25519 public key in PEM.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(data))
    except (ValueError, TypeError) as error:
        raise InvalidError(f"this is no public key in PEM: {error}") from error
    if key.keytype != "ed25519":
        raise InvalidError(f"expected an Ed25519 public key; this one is {key.keytype}")
    return key
