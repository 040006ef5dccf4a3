"""Signing keys as files: the private half encrypted, the public half to pass on.

`NAME.pem` is PKCS#8 (RFC 5958), which OpenSSL reads too. `NAME.pub` is JSON: `keyid`, `name`, and
`key` as it stands in TUF metadata. Rules:

1. A passphrase that a person chose is stretched by scrypt (RFC 7914) before it encrypts the key
   (PBES2, RFC 8018, as RFC 7914 section 7 writes it). `cryptography` by itself would use 2048
   rounds of PBKDF2, which is some 500 000 guesses a second on one graphics card. A random one of
   256 bits needs no stretching.
2. A key's id is the digest of the key. An id that a file or a person claims is checked, never used.
"""

import base64
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust import durable

# A label for people inside the key's metadata; nothing is decided by it.
NAME_FIELD = "x-edgefleet-name"
MIN_PASSPHRASE = 12
MAX_NAME = 64
# 16 MiB, five passes: OWASP's Password Storage Cheat Sheet, the row for N = 2^14. OpenSSL takes no
# more than 32 MiB.
_COST, _BLOCK, _PASSES = 1 << 14, 8, 5
_RANDOM_COST, _RANDOM_PASSES = 1 << 10, 1
_MAX_MEMORY_BYTES = 64 << 20
_KEY_BYTES = 32

# Object identifiers, DER.
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30


def make(path: Path, name: str, passphrase: str | None, *, is_random: bool = False) -> CryptoSigner:
    """Make an Ed25519 key and write it to `path`; see `write`."""
    signer = CryptoSigner.generate_ed25519()
    write(path, signer, name, passphrase, is_random=is_random)
    return signer


def write(
    path: Path,
    signer: CryptoSigner,
    name: str,
    passphrase: str | None,
    *,
    is_random: bool = False,
) -> None:
    """Write a key: `path` for its private half, `path` with `.pub` for its public one.

    Args:
        path: of a file that does not exist.
        signer: the key.
        name: label for people.
        passphrase: None leaves the file unencrypted, readable by its owner only.
        is_random: whether it was made by a machine, with 256 bits.

    Raises:
        InvalidError: if the file exists, or the passphrase is too short.
    """
    if path.exists():
        raise InvalidError(f"{path} exists; a key is never overwritten")
    label(signer.public_key, name)
    if passphrase is None:
        data = signer.private_bytes
    else:
        check_passphrase(passphrase)
        data = _encrypted(signer, passphrase, is_random=is_random)
    durable.write(path, data, mode=durable.PRIVATE)
    durable.write(path.with_suffix(".pub"), public_bytes(signer.public_key), mode=durable.PUBLIC)


def check_passphrase(passphrase: str) -> None:
    """Refuse a passphrase that is too short.

    Raises:
        InvalidError: below `MIN_PASSPHRASE` characters.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise InvalidError(
            f"a passphrase has at least {MIN_PASSPHRASE} characters; this one has {len(passphrase)}"
        )


def label(key: Key, name: str) -> Key:
    """Give a key a name for people, and return it.

    Raises:
        InvalidError: if the name is empty, too long, or not printable ASCII.
    """
    if not name or len(name) > MAX_NAME or not (name.isascii() and name.isprintable()):
        raise InvalidError(f"a key's name is 1 to {MAX_NAME} printable characters, not {name!r}")
    key.unrecognized_fields[NAME_FIELD] = name
    return key


def name_of(key: Key) -> str:
    """Return the name of a key for people: its label, or the beginning of its id."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    return name if isinstance(name, str) and name.isprintable() else key.keyid[:8]


def public_bytes(key: Key) -> bytes:
    """Return the content of a `.pub` file."""
    body = {"keyid": key.keyid, "name": name_of(key), "key": key.to_dict()}
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"


def read_public(data: bytes | str, what: str) -> SSlibKey:
    """Return the key of a `.pub` file.

    Args:
        data: content of the file.
        what: where it came from, for the error text.

    Raises:
        InvalidError: if it is none, or does not have the id that it claims.
    """
    try:
        body = json.loads(data)
        return checked(body["keyid"], body["key"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidError(
            f"{what} is no public key file (.pub, as `edgefleet trust key` writes it): {error}"
        ) from error


def checked(keyid: str, body: dict[str, Any]) -> SSlibKey:
    """Return the key of a metadata entry, if it can verify and has this id (rule 2).

    Raises:
        ValueError: if not.
    """
    key = SSlibKey.from_dict(keyid, json.loads(json.dumps(body)))
    # Written in another way, one key would have two ids and could sign twice.
    if _normal(key) != key.keyval["public"] or keyid_of(key) != keyid:
        raise ValueError(f"key {keyid[:16]} does not have the id of its content")
    return key


def _normal(key: SSlibKey) -> str:
    """Return a key's public value in the one form in which it is written."""
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return bytes.fromhex(public).hex()
    loaded = serialization.load_pem_public_key(public.encode())
    normal: str = SSlibKey.from_crypto(loaded, scheme=key.scheme).keyval["public"]
    return normal


def keyid_of(key: SSlibKey) -> str:
    """Return the digest of a key's type, scheme and public value: TUF's own key id."""
    body = {"keytype": key.keytype, "keyval": key.keyval, "scheme": key.scheme}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Canonical JSON escapes no line ends, which PEM keys have.
    return hashlib.sha256(text.replace("\\n", "\n").encode()).hexdigest()


def read(path: Path, passphrase: bytes | None) -> CryptoSigner:
    """Return the signer of a private key file.

    Raises:
        DamagedError: if it cannot be read, or not with this passphrase.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
        signer = CryptoSigner(key)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError(
            f"signing key {path} cannot be read ({error}); give the right passphrase, or restore"
            " the file from a backup"
        ) from error
    public = path.with_suffix(".pub")
    if public.exists():
        known = read_public(public.read_bytes(), str(public))
        if known.keyid != signer.public_key.keyid:
            raise DamagedError(f"{public} is not the public half of {path}")
        label(signer.public_key, name_of(known))
    return signer


def is_encrypted(path: Path) -> bool:
    """Tell whether a private key file needs a passphrase.

    Raises:
        DamagedError: if it cannot be read.
    """
    try:
        return b"ENCRYPTED" in path.read_bytes()
    except OSError as error:
        raise DamagedError(
            f"signing key {path} cannot be read ({error}); restore it from a backup"
        ) from error


def _encrypted(signer: CryptoSigner, passphrase: str, *, is_random: bool) -> bytes:
    """Return the private key as PKCS#8 PEM, encrypted as rule 1 says."""
    plain = serialization.load_pem_private_key(signer.private_bytes, None).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    cost, passes = (_RANDOM_COST, _RANDOM_PASSES) if is_random else (_COST, _PASSES)
    salt, start = secrets.token_bytes(16), secrets.token_bytes(16)
    key = hashlib.scrypt(
        passphrase.encode(), salt=salt, n=cost, r=_BLOCK, p=passes,
        maxmem=_MAX_MEMORY_BYTES, dklen=_KEY_BYTES,
    )  # fmt: skip
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
    hidden = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    numbers = [_number(value) for value in (cost, _BLOCK, passes, _KEY_BYTES)]
    stretched = _sequence(_SCRYPT, _sequence(_tagged(_OCTETS, salt), *numbers))
    cipher = _sequence(_AES_256_CBC, _tagged(_OCTETS, start))
    scheme = _sequence(_PBES2, _sequence(stretched, cipher))
    text = base64.encodebytes(_sequence(scheme, _tagged(_OCTETS, hidden)))
    frame = b"-----%s ENCRYPTED PRIVATE KEY-----\n"
    return frame % b"BEGIN" + text + frame % b"END"


def _tagged(tag: int, content: bytes) -> bytes:
    """Return a DER value (X.690)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _number(value: int) -> bytes:
    return _tagged(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _sequence(*parts: bytes) -> bytes:
    return _tagged(_SEQUENCE, b"".join(parts))
