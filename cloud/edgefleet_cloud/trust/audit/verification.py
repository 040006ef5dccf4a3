"""The check of an exported log, without hub or database. Lines in, a verdict out.

What is found, by the first place where the file departs from the form (`export`) or the chain
(`chain`):

| kind | meaning |
|---|---|
| `form` | a line that is none of the format's |
| `altered` | the entry, or its digest, is not what was written |
| `removed` | an entry is missing |
| `reordered` | an entry stands in another place |
| `rewritten` | digests fit each other, and not the next signature: changed together |
| `signature` | a checkpoint that none of the given keys has signed |
| `cut` | the end is missing: the file's own, or entries for which a checkpoint is known elsewhere |
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature

from edgefleet_cloud.trust.audit import chain, export
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link

Kind = Literal["form", "altered", "removed", "reordered", "rewritten", "signature", "cut"]
_START = b'{"digest":"'
_MIDDLE = b'","entry":'
_LINE_AT = len(_START) + 64 + len(_MIDDLE)
_HEADER = msgspec.json.Decoder(export.Header)
_OMITTED = msgspec.json.Decoder(export.Omitted)
_SIGNED = msgspec.json.Decoder(export.Signed)


class BrokenError(Exception):
    """The log is not what was signed.

    Attributes:
        kind: see the module.
        number: of the first entry that is concerned.
        text: for people.
    """

    def __init__(self, kind: Kind, number: int, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.number = number
        self.text = text


class Verified(Struct, frozen=True):
    """What holds.

    Attributes:
        first, last: numbers of the entries that the file covers.
        entries: given in full; the others are omitted, and held to the same signatures.
        signed: number of the last signed entry; later ones are not signed yet.
        at: when that was signed, Unix seconds.
        keyid: by which key.
        checkpoints: how many signatures were verified.
        unused: checkpoints from elsewhere that speak of entries before the file.
    """

    first: int
    last: int
    entries: int
    signed: int
    at: int
    keyid: str
    checkpoints: int
    unused: int


def verify(
    lines: Iterable[bytes],
    keys: Sequence[Key],
    *,
    known: Sequence[Checkpoint] = (),
    unsigned_tail: bool = False,
    each: Callable[[chain.Entry], None] | None = None,
) -> Verified:
    """Check a log.

    Args:
        lines: of the file, each with its line feed.
        keys: public audit keys that are trusted.
        known: checkpoints that were kept elsewhere: the log must hold what they say.
        unsigned_tail: allow entries after the last checkpoint, as in a database.
        each: is given every entry that is there in full, once the chain has reached it; what it
            does with it counts only if this function returns.

    Raises:
        BrokenError: at the first place that is wrong.
    """
    by_id = {key.keyid: key for key in keys}
    kept: dict[int, str] = {}
    for checkpoint in known:
        _check_signature(checkpoint, by_id)
        if kept.setdefault(checkpoint.number, checkpoint.digest) != checkpoint.digest:
            text = f"two checkpoints that were kept contradict each other at {checkpoint.number}"
            raise BrokenError("rewritten", checkpoint.number, text)
    return _Walk(iter(lines), by_id, kept, each).run(unsigned_tail)


class _Walk:
    """One pass over a file.

    Attributes:
        number: of the last entry that the chain has reached.
    """

    def __init__(
        self,
        lines: Iterator[bytes],
        keys: Mapping[str, Key],
        known: dict[int, str],
        each: Callable[[chain.Entry], None] | None,
    ) -> None:
        self._lines = lines
        self._keys = keys
        self._known = known
        self._each = each
        self._entries = 0
        self._checked: list[Checkpoint] = []
        self._omitted_since = 0
        self._header = _read(_HEADER, next(lines, b""), 0)
        if self._header.audit != chain.VERSION:
            raise BrokenError("form", 0, f"this is version {self._header.audit} of the form")
        self.number = self._header.after.number
        self._digest = bytes.fromhex(self._header.after.digest)
        if self.number == 0 and self.digest != chain.START:
            raise BrokenError("altered", 0, "the log does not begin at its start")
        self._compare()

    @property
    def digest(self) -> str:
        """The chain's digest up to here."""
        return self._digest.hex()

    def run(self, unsigned_tail: bool) -> Verified:
        for line in self._lines:
            if line.startswith(_START):
                self._entry(line)
            elif line.startswith(b'{"omitted"'):
                self._omitted(line)
            else:
                self._checkpoint(line)
        return self._end(unsigned_tail)

    def _entry(self, line: bytes) -> None:
        """Follow the chain over an entry in full; only of a wrong one is more than that read."""
        raw = line[_LINE_AT:-2]
        digest = sha256(self._digest + sha256(raw).digest()).digest()
        number = self.number + 1
        if (
            line[:_LINE_AT] != b'{"digest":"%b","entry":' % digest.hex().encode()
            or not raw.startswith(b'{"v":1,"number":%d,' % number)
            or not line.endswith(b"}\n")
        ):
            self._blame(line, number)
        self.number, self._digest = number, digest
        if self._known:
            self._compare()
        self._entries += 1
        self._omitted_since = 0
        if self._each is not None:
            self._each(_decode(raw, number))

    def _blame(self, line: bytes, expected: int) -> None:
        """Say why an entry does not follow what stands before it."""
        if not line.endswith(b"}\n"):
            raise BrokenError("cut", expected, f"the line of entry {expected} is cut off")
        entry = _decode(line[_LINE_AT:-2], expected)
        if entry.number != expected:
            self._misplaced(entry.number, expected)
        text = f"entry {expected} is not what was written"
        if self._omitted_since:
            text = f"entry {expected}, or one of those omitted from {self._omitted_since} on, is"
            text += " not what was written"
        raise BrokenError("altered", self._omitted_since or expected, text)

    def _misplaced(self, number: int, expected: int) -> None:
        text = f"entry {number} stands where entry {expected} was expected"
        if number < expected or any(_number(line) == expected for line in self._lines):
            raise BrokenError("reordered", expected, text)
        raise BrokenError("removed", expected, f"{text}; {expected} is missing")

    def _omitted(self, line: bytes) -> None:
        held = _read(_OMITTED, line, self.number + 1)
        self._omitted_since = self._omitted_since or self.number + 1
        for digest in held.omitted:
            self.number += 1
            self._digest = sha256(self._digest + bytes.fromhex(digest)).digest()
            self._compare()

    def _compare(self) -> None:
        """Hold the chain against the checkpoints that were kept elsewhere."""
        if self._known.get(self.number, self.digest) != self.digest:
            text = f"entries up to {self.number} are not those of a checkpoint that was kept"
            raise BrokenError("rewritten", self.number, text)

    def _checkpoint(self, line: bytes) -> None:
        held = _read(_SIGNED, line, self.number + 1).checkpoint
        before = self._checked[-1].number if self._checked else self._header.after.number
        if held.number != self.number:
            text = f"the checkpoint of entry {held.number} stands after entry {self.number}"
            kind: Kind = "removed" if held.number > self.number else "reordered"
            raise BrokenError(kind, min(held.number, self.number) + 1, text)
        _check_signature(held, self._keys)
        if held.digest != self.digest:
            text = f"entries from {before + 1} to {held.number} are not those that were signed"
            raise BrokenError("rewritten", before + 1, text)
        self._checked.append(held)
        self._omitted_since = 0

    def _end(self, unsigned_tail: bool) -> Verified:
        wanted = self._header.checkpoints
        found = [item.number for item in self._checked]
        if not wanted:
            raise BrokenError("signature", 1, "there is no checkpoint: nothing is signed")
        if found != wanted or (not unsigned_tail and self.number != wanted[-1]):
            last = max([*wanted, self.number])
            text = f"the file ends at entry {self.number}, with {len(found)} of its {len(wanted)}"
            text += " checkpoints"
            raise BrokenError("cut", min(last, self.number + 1), text)
        beyond = [number for number in self._known if number > self.number]
        if beyond:
            text = f"the log ends at entry {self.number}; a checkpoint of {max(beyond)} was kept"
            raise BrokenError("cut", self.number + 1, text)
        first, newest = self._header.after.number + 1, self._checked[-1]
        return Verified(
            first=first,
            last=self.number,
            entries=self._entries,
            signed=newest.number,
            at=newest.at,
            keyid=newest.keyid,
            checkpoints=len(found),
            unused=sum(number < first - 1 for number in self._known),
        )


def _decode(raw: bytes, number: int) -> chain.Entry:
    try:
        return chain.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BrokenError("altered", number, f"entry {number} cannot be read: {error}") from error


def _number(line: bytes) -> int | None:
    """Return the number of an entry's line, None for another line."""
    if not line.startswith(_START):
        return None
    try:
        return chain.decode(line[_LINE_AT:-2]).number
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _read(decoder: "msgspec.json.Decoder[Any]", line: bytes, number: int) -> Any:
    """Return a line that is no entry, in the one form that it may have."""
    try:
        value = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"the line where entry {number} was expected cannot be read: {error}"
        raise BrokenError("form", number, text) from error
    if msgspec.json.encode(value) + b"\n" != line:
        text = f"the line where entry {number} was expected is not in the one form that it may have"
        raise BrokenError("form", number, text)
    return value


def _check_signature(checkpoint: Checkpoint, keys: Mapping[str, Key]) -> None:
    key = keys.get(checkpoint.keyid)
    what = f"the checkpoint of entry {checkpoint.number}"
    if key is None:
        trusted = ", ".join(keyid[:12] for keyid in keys) or "none"
        text = f"{what} is signed by key {checkpoint.keyid[:12]}, which is not trusted ({trusted})"
        raise BrokenError("signature", checkpoint.number, text)
    payload = chain.checkpoint_payload(Link(checkpoint.number, checkpoint.digest), checkpoint.at)
    try:
        key.verify_signature(Signature(checkpoint.keyid, checkpoint.signature), payload)
    except (UnverifiedSignatureError, VerificationError, ValueError) as error:
        raise BrokenError(
            "signature", checkpoint.number, f"{what} has a wrong signature"
        ) from error
