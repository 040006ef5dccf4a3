"""The form of an audit log, version 1. No clock, no database, no key: values and digests only.

1. An entry is one line of JSON with exactly the fields of `Entry`, in their order, UTF-8, without
   spaces between tokens. `number` counts from 1 without gaps.
2. The digest after entry n is SHA-256(digest after n-1 ‖ SHA-256(line n)), both as 32 raw bytes;
   before the first entry it is 32 zero bytes. The bytes of the line count, not its meaning, so
   nobody has to agree on how numbers or keys are written.
3. Because the line goes in by its own digest, an entry may be left out of a copy and the chain
   still be followed: its line's digest takes its place.
4. A checkpoint is an Ed25519 signature over `checkpoint_payload`: the chain's digest at an entry,
   and when that was signed.
5. `before` and `after` of more than `MAX_VALUE_BYTES` are held as their digest and length.
"""

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgefleet_cloud.values import Json

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]

VERSION: Literal[1] = 1
START = "0" * 64
# Lists of tens of thousands of devices belong in the tables that the entry names.
MAX_VALUE_BYTES = 16_384
MAX_REASON_LENGTH = 2000
MAX_NAME_LENGTH = 200
_CHECKPOINT = "edgefleet audit checkpoint 1"


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One decision.

    Attributes:
        v: version of this form.
        at: Unix seconds.
        actor: who decided; `kind`: person, service, device or hub.
        action: `noun.verb`.
        subject: what was decided on.
        before, after: of the subject; null where there is none.
        reason: as the actor gave it, or the rule that decided.
    """

    v: Literal[1]
    number: int
    at: float
    actor: str
    kind: str
    action: str
    subject: str
    before: Any
    after: Any
    reason: str


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """A place in the chain: the number of an entry, and the digest after it."""

    number: int
    digest: Digest


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """A signed place in the chain.

    Attributes:
        at: when it was signed, whole Unix seconds.
        keyid: of the key, as in TUF metadata.
        signature: Ed25519 over `checkpoint_payload`, hexadecimal.
    """

    number: int
    digest: Digest
    at: int
    keyid: str
    signature: str


_ENTRY = msgspec.json.Decoder(Entry)


def encode(entry: Entry) -> str:
    """Return the line of an entry."""
    return msgspec.json.encode(entry).decode()


def decode(line: str | bytes) -> Entry:
    """Return the entry of a line.

    Raises:
        msgspec.DecodeError: if it has not the form of rule 1.
    """
    return _ENTRY.decode(line)


def value(given: Json | None) -> Any:
    """Return `before` or `after` as an entry holds it (rule 5)."""
    encoded = msgspec.json.encode(given, order="sorted")
    if len(encoded) <= MAX_VALUE_BYTES:
        return msgspec.Raw(encoded)
    return {"sha256": hashlib.sha256(encoded).hexdigest(), "bytes": len(encoded)}


def text(given: str, limit: int) -> str:
    """Return what was given as text that can be encoded, cut to `limit` characters."""
    whole = given.encode("utf-8", "replace").decode()
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"


def line_digest(line: str) -> bytes:
    """Return the digest by which a line enters the chain, 32 raw bytes."""
    return hashlib.sha256(line.encode()).digest()


def follow(digest: str, line: bytes) -> str:
    """Return the chain's digest after one more entry.

    Args:
        digest: the chain's before it.
        line: `line_digest` of the entry.
    """
    return hashlib.sha256(bytes.fromhex(digest) + line).hexdigest()


def checkpoint_payload(link: Link, at: int) -> bytes:
    """Return the bytes that a checkpoint signs: four lines of text."""
    return f"{_CHECKPOINT}\n{link.number}\n{link.digest}\n{at}\n".encode()
