"""Fetching a bundle block by block, at the device's own pace. No socket and no clock here.

First the manifest (as long as the signed metadata says), then the transfer blob of every file that
is not on disk. Rules:

1. At most `WINDOW` blocks are asked for and unanswered: the device paces, whatever the broker does.
2. A block is checked against the manifest before it is written. A wrong one is dropped and
   counted; the third wrong answer for one block ends the attempt.
3. An unanswered block is asked for again, after 5 s and then ever more slowly up to a minute.
4. Bytes are bounded: an attempt that has received what its order allows, or twice what its bundle
   weighs (and one window), is given up, so a flood of wrong or repeated blocks cannot use up a
   metered link.
5. Blocks that were not asked for are taken too (a broadcast to a whole stage), if they are missing.
6. No more is asked for than the device's byte budget has left. Waiting for it is not stalling.
7. Whether there is room on disk is known before the first block of a file is asked for.
8. Slow work on the disk (`open`) is done beside the thread that takes blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edgefleet_agent.downloading.slots import Heed, Part, Slots, go_on
from edgefleet_agent.errors import StoreError
from edgefleet_agent.updating.journal import Assigned
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
        self._digest = digest
        self._data = bytearray(size_bytes)
        self.size_bytes = size_bytes
        self.missing = set(range(blocks.block_count(size_bytes)))

    def write(self, index: int, payload: bytes) -> bool:
        expected = blocks.block_length(self.size_bytes, index)
        if len(payload) != expected:
            raise MalformedError(f"block {index} has {len(payload)} bytes; expected {expected}")
        start = index * blocks.BLOCK_BYTES
        self._data[start : start + expected] = payload
        self.missing.discard(index)
        if not self.missing and digest_of(self._data) != self._digest:
            # No block of a manifest can be judged alone: all are asked for again.
            self.missing = set(range(blocks.block_count(self.size_bytes)))
            return False
        return True

    def content(self) -> bytes:
        return bytes(self._data)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Opened:
    """What `Fetch.open` found and made.

    Attributes:
        bundle: None if the manifest has yet to be fetched.
        parts: by digest of their blob, those that are complete included.
        deleted: files of the store that had to go for the room this bundle needs.
    """

    bundle: Manifest | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Let go of all open files."""
        for part in self.parts.values():
            part.close()


class Fetch:
    """The download of one attempt.

    While `opening` is true, `open` is to be called (it may take long: on a thread beside), and its
    outcome given to `take_opened`. That is so at the start, and again when the manifest is there.

    Attributes:
        digest: of the blob that is being fetched now, None when all is there.
        fetched_bytes: received so far in this process, wrong blocks included.
        total_bytes: of manifest and files, as far as known.
        progress_at: when the last right block came, or the files were opened (monotonic seconds).
        opening: whether `open` is to be called.
        waiting: whether more would be asked for, and the byte budget does not let it.
    """

    def __init__(
        self,
        slots: Slots,
        target: Assigned,
        check: Callable[[Manifest], None],
        now: float,
        before_bytes: int = 0,
        *,
        room: Callable[[Manifest], list[str]] = lambda _: [],
        max_bytes: int = 0,
    ) -> None:
        """Begin; nothing is read or opened yet.

        Args:
            slots: where files and parts are.
            target: what is to be fetched.
            check: raises `RefusedError` if the manifest is not for this device.
            now: monotonic seconds.
            before_bytes: received for this attempt by earlier downloads.
            room: sees that the bundle fits on the disk; returns what it deleted for it, raises
                `StoreError` if it does not fit.
            max_bytes: that the order allows this attempt to receive; 0 for rule 4's bound alone.
        """
        self._slots = slots
        self._target = target
        self._check = check
        self._room = room
        self._max_bytes = max_bytes
        self._asked: dict[int, float] = {}
        self._retry_s = FIRST_RETRY_S
        self._wrong: dict[tuple[str, int], int] = {}
        self._unavailable = 0
        self._before_bytes = before_bytes
        self._not_before = now
        self._blob: _ManifestBlob | Part | None = None
        self._manifest: bytes | None = None
        self._later: list[tuple[str, Part]] = []
        self.opening = True
        self.waiting = False
        self.digest: str | None = None
        self.fetched_bytes = 0
        self.total_bytes = target.manifest_bytes
        self.progress_at = now

    @property
    def done(self) -> bool:
        """Whether every block of every blob is there."""
        return self._blob is None and not self.opening

    @property
    def held_bytes(self) -> int:
        """Of `total_bytes`, how much is here, from this run or an earlier one."""
        return max(self.total_bytes - self._missing_bytes, 0)

    @property
    def asked_bytes(self) -> int:
        """What was asked for and has not come."""
        return sum(self._length(index) for index in self._asked)

    # -- disk ------------------------------------------------------------------------------------

    def open(self, heed: Heed = go_on) -> Opened:
        """Read the manifest, see that its files fit, and open what an earlier run left of them.

        Changes nothing in this object, so it may run beside the thread that uses it.

        Args:
            heed: raises what is to end the work.

        Raises:
            RefusedError: if the manifest is not for this device.
            MalformedError: if the signed manifest cannot be read.
            StoreError: if there is no room; nothing was asked for then.
            OSError: if the store cannot be read or written.
        """
        digest = self._target.slot.manifest
        if self._manifest is not None:
            bundle = decode_manifest(self._manifest)
            self._check(bundle)
            self._slots.save_manifest(digest, self._manifest)
        else:
            if self._target.manifest_bytes > MAX_MANIFEST_BYTES:
                raise RefusedError(
                    "too-large",
                    f"manifest of {self._target.manifest_bytes} bytes;"
                    f" at most {MAX_MANIFEST_BYTES}",
                )
            try:
                bundle = self._slots.manifest(digest)
            except (StoreError, MalformedError):
                return Opened()
            self._check(bundle)
        opened = Opened(bundle, deleted=self._room(bundle))
        try:
            for file in self._slots.absent(bundle):
                if file.transfer.digest not in opened.parts:  # two roles may share one blob
                    opened.parts[file.transfer.digest] = self._slots.open_part(file, heed)
        except BaseException:
            opened.close()
            raise
        return opened

    def take_opened(self, opened: Opened, now: float) -> None:
        """Go on with what `open` found.

        Raises:
            RefusedError: `too-many-bytes`, if the order does not allow what is still missing.
        """
        self.opening = False
        self.progress_at = now
        if opened.bundle is None:
            self.digest = self._target.slot.manifest
            self._blob = _ManifestBlob(self.digest, self._target.manifest_bytes)
            if not self._blob.missing:
                self._end_blob()  # an empty one, which `open` will refuse
            return
        files = self._slots.needed(opened.bundle)
        self.total_bytes = self._target.manifest_bytes + sum(f.transfer.size_bytes for f in files)
        self._later = list(opened.parts.items())
        self._begin_next()
        missing = self._missing_bytes
        received = self._before_bytes + self.fetched_bytes
        if self._max_bytes and received + missing > self._max_bytes:
            raise RefusedError(
                "too-many-bytes",
                f"{missing} bytes are missing and {received} were received;"
                f" the order allows {self._max_bytes}",
            )

    def close(self) -> None:
        """Let go of all open files."""
        for blob in (self._blob, *(part for _, part in self._later)):
            if blob is not None:
                blob.close()
        self._blob, self._later = None, []

    # -- asking ----------------------------------------------------------------------------------

    def request(
        self, now: float, window: int = WINDOW, allowance_bytes: int | None = None
    ) -> BlockRequest | None:
        """Return what to ask for now, None for nothing.

        Args:
            now: monotonic seconds.
            window: most blocks to be asked for and unanswered.
            allowance_bytes: most bytes to be asked for and unanswered; None for no limit.
        """
        if self._blob is None or self.digest is None or now < self._not_before:
            return None
        overdue = [index for index, until in self._asked.items() if until <= now]
        if overdue:
            for index in overdue:
                del self._asked[index]
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        self.waiting = False
        if len(self._asked) > window // 2:
            return None  # asking half a window at a time keeps requests few
        wanted = sorted(self._blob.missing - self._asked.keys())[: window - len(self._asked)]
        if allowance_bytes is not None and wanted:
            wanted = list(self._within(wanted, allowance_bytes - self.asked_bytes))
            self.waiting = not wanted and not self._asked
        if not wanted:
            return None
        self._asked.update(dict.fromkeys(wanted, now + self._retry_s))
        return BlockRequest(self.digest, blocks.bitmap_of(wanted))

    def next_at(self) -> float | None:
        """Return when `request` may have something new to say, monotonic seconds."""
        if self._blob is None or self.waiting:
            return None
        return min(self._asked.values(), default=self._not_before)

    def reconnected(self, now: float) -> None:
        """Forget what was asked for: the answers went to a connection that is gone."""
        self._asked.clear()
        self._retry_s = FIRST_RETRY_S
        self._not_before = now

    # -- answers ---------------------------------------------------------------------------------

    def receive(self, block: Block, now: float) -> str | None:
        """Take one block.

        Returns:
            Why it was dropped, None if it was taken or not needed.

        Raises:
            RefusedError: `hash-mismatch` (rule 2) or `too-many-bytes` (rule 4).
            OSError: if it cannot be written.
        """
        if self._blob is None or block.digest != self.digest:
            return None
        self.fetched_bytes += len(block.payload)
        self._asked.pop(block.index, None)
        received = self._before_bytes + self.fetched_bytes
        allowed = 2 * self.total_bytes + WINDOW * blocks.BLOCK_BYTES
        allowed = min(allowed, self._max_bytes or allowed)
        if received > allowed:
            raise RefusedError(
                "too-many-bytes",
                f"received {received} bytes for a bundle of {self.total_bytes}; at most {allowed}",
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
            self._end_blob()
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

    # -- inner -----------------------------------------------------------------------------------

    @property
    def _missing_bytes(self) -> int:
        """Bytes that have yet to come, as far as known."""
        missing = 0
        for blob in (self._blob, *(part for _, part in self._later)):
            if blob is not None and blob.missing:
                missing += len(blob.missing) * blocks.BLOCK_BYTES
                last = blocks.block_count(blob.size_bytes) - 1
                if last in blob.missing:
                    missing -= blocks.BLOCK_BYTES - blocks.block_length(blob.size_bytes, last)
        return missing

    def _length(self, index: int) -> int:
        return blocks.block_length(self._blob.size_bytes, index) if self._blob else 0

    def _within(self, indices: list[int], allowance_bytes: int) -> Iterator[int]:
        for index in indices:
            allowance_bytes -= self._length(index)
            if allowance_bytes < 0:
                return
            yield index

    def _count_wrong(self, block: Block, complaint: str) -> None:
        key = (block.digest, block.index)
        self._wrong[key] = self._wrong.get(key, 0) + 1
        if self._wrong[key] >= MAX_WRONG_ANSWERS:
            raise RefusedError(
                "hash-mismatch", f"{complaint}, {MAX_WRONG_ANSWERS} answers in a row"
            )

    def _end_blob(self) -> None:
        if isinstance(self._blob, _ManifestBlob):
            self._manifest = self._blob.content()
            self._asked.clear()
            self._blob = self.digest = None
            self.opening = True
        elif self._blob is not None:
            self._blob.close()
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
