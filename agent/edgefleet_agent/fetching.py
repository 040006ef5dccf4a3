"""Fetching a bundle block by block, at the device's own pace. No socket and no clock here.

First the manifest (as long as the signed metadata says), then the transfer blob of every file that
is not on disk. Rules:

1. At most `WINDOW` blocks are asked for and unanswered: the device paces, whatever the broker does.
2. A block is checked against the manifest before it is written. A wrong one is dropped and
   counted; the third wrong answer for one block ends the attempt.
3. An unanswered block is asked for again, after 5 s and then ever more slowly up to a minute.
4. Bytes are bounded: an attempt that has received twice what its bundle weighs (and one window) is
   given up, so a flood of wrong or repeated blocks cannot use up a metered link.
5. Blocks that were not asked for are taken too (a broadcast to a whole stage), if they are missing.
"""

from collections.abc import Callable

from edgefleet_agent.errors import StoreError
from edgefleet_agent.slots import Part, Slots
from edgefleet_agent.update import Assigned
from edgefleet_protocol import blocks
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from edgefleet_protocol.manifest import decode as decode_manifest
from edgefleet_protocol.messages import Block, BlockRequest

WINDOW = 16
FIRST_RETRY_S = 5.0
LAST_RETRY_S = 60.0
MAX_WRONG_ANSWERS = 3
MAX_UNAVAILABLE = 5


class _ManifestBlob:
    """A manifest under way: held in memory (4 MiB at most), checked as a whole."""

    def __init__(self, digest: str, size_bytes: int) -> None:
        if size_bytes > MAX_MANIFEST_BYTES:
            raise RefusedError(
                "too-large", f"manifest of {size_bytes} bytes; at most {MAX_MANIFEST_BYTES}"
            )
        self._digest = digest
        self._data = bytearray(size_bytes)
        self.missing = set(range(blocks.block_count(size_bytes)))

    def write(self, index: int, payload: bytes) -> bool:
        expected = blocks.block_length(len(self._data), index)
        if len(payload) != expected:
            raise MalformedError(f"block {index} has {len(payload)} bytes; expected {expected}")
        start = index * blocks.BLOCK_BYTES
        self._data[start : start + expected] = payload
        self.missing.discard(index)
        if not self.missing and digest_of(self._data) != self._digest:
            # No block of a manifest can be judged alone: all are asked for again.
            self.missing = set(range(blocks.block_count(len(self._data))))
            return False
        return True

    def content(self) -> bytes:
        return bytes(self._data)

    def close(self) -> None:
        """Nothing is open."""


class Fetch:
    """The download of one attempt.

    Attributes:
        digest: of the blob that is being fetched now, None when all is there.
        fetched_bytes: received so far in this process, wrong blocks included.
        total_bytes: of manifest and files, as far as known.
        progress_at: when the last right block came (monotonic seconds).
    """

    def __init__(
        self,
        slots: Slots,
        target: Assigned,
        check: Callable[[Manifest], None],
        now: float,
        before_bytes: int = 0,
    ) -> None:
        """Open what an earlier run left, and see what is missing.

        Args:
            slots: where files and parts are.
            target: what is to be fetched.
            check: raises `RefusedError` if the manifest is not for this device.
            now: monotonic seconds.
            before_bytes: received for this attempt by earlier downloads.

        Raises:
            RefusedError: if the manifest is refused.
            OSError: if there is no room.
        """
        self._slots = slots
        self._target = target
        self._check = check
        self._asked: dict[int, float] = {}
        self._retry_s = FIRST_RETRY_S
        self._wrong: dict[tuple[str, int], int] = {}
        self._unavailable = 0
        self._before_bytes = before_bytes
        self._not_before = now
        self._blob: _ManifestBlob | Part | None = None
        self._later: list[tuple[str, Part]] = []
        self.digest: str | None = None
        self.fetched_bytes = 0
        self.total_bytes = target.manifest_bytes
        self.progress_at = now
        manifest_digest = target.slot.manifest
        try:
            bundle = slots.manifest(manifest_digest)
        except (StoreError, MalformedError):
            self.digest = manifest_digest
            self._blob = _ManifestBlob(manifest_digest, target.manifest_bytes)
        else:
            self._open_files(bundle)

    @property
    def done(self) -> bool:
        """Whether every block of every blob is there."""
        return self._blob is None

    @property
    def held_bytes(self) -> int:
        """Of `total_bytes`, how much is here, from this run or an earlier one."""
        missing = 0
        if self._blob:
            missing += len(self._blob.missing) * blocks.BLOCK_BYTES
        missing += sum(len(part.missing) * blocks.BLOCK_BYTES for _, part in self._later)
        return max(self.total_bytes - missing, 0)

    def request(self, now: float, window: int = WINDOW) -> BlockRequest | None:
        """Return what to ask for now, None for nothing."""
        if self._blob is None or self.digest is None or now < self._not_before:
            return None
        overdue = [index for index, until in self._asked.items() if until <= now]
        if overdue:
            for index in overdue:
                del self._asked[index]
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        if len(self._asked) > window // 2:
            return None  # asking half a window at a time keeps requests few
        wanted = sorted(self._blob.missing - self._asked.keys())[: window - len(self._asked)]
        if not wanted:
            return None
        self._asked.update(dict.fromkeys(wanted, now + self._retry_s))
        return BlockRequest(self.digest, blocks.bitmap_of(wanted))

    def next_at(self) -> float | None:
        """Return when `request` may have something new to say, monotonic seconds."""
        if self.done:
            return None
        return min(self._asked.values(), default=self._not_before)

    def reconnected(self, now: float) -> None:
        """Forget what was asked for: the answers went to a connection that is gone."""
        self._asked.clear()
        self._retry_s = FIRST_RETRY_S
        self._not_before = now

    def receive(self, block: Block, now: float) -> str | None:
        """Take one block.

        Returns:
            Why it was dropped, None if it was taken or not needed.

        Raises:
            RefusedError: `hash-mismatch` (rule 2), `too-many-bytes` (rule 4), or what the check
                of the manifest says.
            MalformedError: if the signed manifest cannot be read.
        """
        if self._blob is None or block.digest != self.digest:
            return None
        self.fetched_bytes += len(block.payload)
        self._asked.pop(block.index, None)
        received = self._before_bytes + self.fetched_bytes
        if received > 2 * self.total_bytes + WINDOW * blocks.BLOCK_BYTES:
            raise RefusedError(
                "too-many-bytes",
                f"received {received} bytes for a bundle of {self.total_bytes}",
            )
        if block.index not in self._blob.missing:
            return None
        try:
            right = self._blob.write(block.index, block.payload)
            complaint = f"block {block.index} of {block.digest} differs from its signed digest"
        except MalformedError as error:
            right, complaint = False, str(error)
        if not right:
            self._count_wrong(block, complaint)
            return complaint
        self.progress_at = now
        self._retry_s = FIRST_RETRY_S
        self._unavailable = 0
        if not self._blob.missing:
            self._next_blob()
        return None

    def unavailable(self, reason: str, now: float) -> None:
        """Take the hub's word that it cannot serve the blob now; ask again later, a few times.

        Raises:
            StoreError: if it said so too often.
        """
        self._unavailable += 1
        if self._unavailable >= MAX_UNAVAILABLE:
            raise StoreError(f"the hub cannot serve {self.digest}: {reason}")
        self._asked.clear()
        self._not_before = now + FIRST_RETRY_S * self._unavailable

    def close(self) -> None:
        """Let go of all open files."""
        for blob in (self._blob, *(part for _, part in self._later)):
            if blob is not None:
                blob.close()
        self._blob, self._later = None, []

    def _count_wrong(self, block: Block, complaint: str) -> None:
        key = (block.digest, block.index)
        self._wrong[key] = self._wrong.get(key, 0) + 1
        if self._wrong[key] >= MAX_WRONG_ANSWERS:
            raise RefusedError(
                "hash-mismatch", f"{complaint}, {MAX_WRONG_ANSWERS} answers in a row"
            )

    def _next_blob(self) -> None:
        if isinstance(self._blob, _ManifestBlob):
            data = self._blob.content()
            bundle = decode_manifest(data)
            self._check(bundle)
            self._slots.save_manifest(self._target.slot.manifest, data)
            self._open_files(bundle)
            return
        if self._blob is not None:
            self._blob.close()
        self._begin_next()

    def _open_files(self, bundle: Manifest) -> None:
        self._check(bundle)
        files = self._slots.needed(bundle)
        self.total_bytes = self._target.manifest_bytes + sum(f.transfer.size_bytes for f in files)
        seen: set[str] = set()
        for file in self._slots.absent(bundle):
            if file.transfer.digest not in seen:  # two roles may share one blob
                seen.add(file.transfer.digest)
                self._later.append((file.transfer.digest, self._slots.open_part(file)))
        self._begin_next()

    def _begin_next(self) -> None:
        self._asked.clear()
        self._blob = self.digest = None
        while self._later:
            digest, part = self._later.pop(0)
            if part.missing:
                self.digest, self._blob = digest, part
                return
            part.close()
