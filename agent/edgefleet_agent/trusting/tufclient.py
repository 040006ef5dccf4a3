"""python-tuf's client workflow over messages that have arrived; see `refresh`.

    python -m edgefleet_agent.trusting.tufclient

Request on standard input, verdict on standard output. Rules:

1. Metadata expires by the time that the parent gives, not by this machine's clock.
2. Roots, delegations and the length of every role are bounded; so is the memory of this process.
3. What is verified is durable before it is told: python-tuf does not fsync.
4. The director's repository is never followed into delegations.
"""

import datetime
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgefleet_agent import files
from edgefleet_agent.trusting import bounds
from edgefleet_agent.trusting.refresh import (
    MAX_TEXT,
    Fault,
    Found,
    Outcome,
    Repository,
    Request,
    Target,
    TimeCheck,
    TimeVerdict,
    Verified,
)
from edgefleet_protocol import attesting, trust

# Of address space: python-tuf needs some 25 times the largest role that is allowed.
MAX_MEMORY_BYTES = 512 * 1024 * 1024
_CONFIG = UpdaterConfig(
    max_root_rotations=bounds.MAX_ROOTS,
    max_delegations=bounds.MAX_DELEGATIONS,
    root_max_length=bounds.MAX_ROOT_BYTES,
    timestamp_max_length=bounds.MAX_TIMESTAMP_BYTES,
    snapshot_max_length=bounds.MAX_SNAPSHOT_BYTES,
    targets_max_length=bounds.MAX_TARGETS_BYTES,
)
_FAULTS: list[tuple[type[Exception], Fault]] = [
    (UnsignedMetadataError, "unsigned"),
    (ExpiredMetadataError, "expired"),
    (LengthOrHashMismatchError, "length-or-hash"),
    (BadVersionNumberError, "version"),
    (DownloadHTTPError, "missing"),
]
_REFUSALS = (RepositoryError, DownloadError, MemoryError)
_FILE = re.compile(r"(?:(?P<version>[0-9]+)\.)?(?P<role>[^/]+)\.json")


class Received(FetcherInterface):
    """Serves python-tuf the messages that have arrived, by the name of its file.

    Args:
        parts: role, or `root-N` → content. Whether `7.targets.json` is asked for or `targets.json`,
            the role that is here is given: the client checks its version.

    Attributes:
        role: that was asked for last.
    """

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._parts = parts
        self.role = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = _FILE.fullmatch(url.rpartition("/")[2])
        role = name["role"] if name else ""
        self.role = f"root-{name['version']}" if name and role == Root.type else role
        data = self._parts.get(self.role)
        if data is None:
            # 404 is what tells python-tuf that there is no newer root.
            raise DownloadHTTPError(f"{self.role} has not arrived", 404)
        return iter([data])


class Client:
    """The client workflow on one repository, with the bounds of this agent.

    Args:
        folder: of trusted metadata.
        bootstrap: the root that the device was given.
        fetcher: gives metadata files by URL.
        at: Unix time by which metadata expires.
        url: that file names are appended to.

    Raises:
        RepositoryError: if the bootstrap root cannot be used.
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: bytes,
        fetcher: FetcherInterface,
        at: float,
        url: str = "mqtt://",
    ) -> None:
        self._folder = folder
        self._updater = Updater(
            str(folder), url, fetcher=fetcher, config=_CONFIG, bootstrap=bootstrap
        )
        # python-tuf has no argument for it; `test_agent_refresh` holds that it is this one.
        self._set = self._updater._trusted_set
        self._set.reference_time = datetime.datetime.fromtimestamp(at, datetime.UTC)

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._set.root

    @property
    def targets(self) -> Targets:
        """The top-level targets role, after `refresh`."""
        return self._set.targets

    def refresh(self) -> None:
        """Verify the top-level roles.

        Raises:
            RepositoryError: if one is refused.
            DownloadError: if one cannot be had.
            OSError: if it cannot be stored.
        """
        self._updater.refresh()

    def find(self, path: str) -> TargetFile | None:
        """Look a target up through the delegations, after `refresh`.

        Returns:
            None if no role lists it.

        Raises:
            RepositoryError: if a role on the way is refused.
            DownloadError: if one cannot be had.
            OSError: if it cannot be stored.
        """
        return self._updater.get_targetinfo(path)

    def signers(self) -> list[str]:
        """Return the keyids whose signatures on the top-level targets role verify."""
        stored = Metadata[Targets].from_bytes((self._folder / "targets.json").read_bytes())
        result = self.root.get_verification_result(
            Targets.type, stored.signed_bytes, stored.signatures
        )
        return sorted(result.signed)

    def sync(self) -> None:
        """Make what was verified durable (rule 3).

        Raises:
            OSError: if that cannot be done.
        """
        files.sync_files(self._folder)
        files.sync_files(self._folder / "root_history")


def fault_of(error: Exception) -> Fault:
    """Return the family of a refusal of the client."""
    for kind, fault in _FAULTS:
        if isinstance(error, kind):
            return fault
    return "other"


def refresh(request: Request) -> Outcome:
    """Verify what has arrived against what is trusted, and make the result durable."""
    director = image = None
    wanted = list(request.wanted)
    try:
        if request.director:
            director = _verify_director(request.director, request.at)
            wanted += [path for path in director.targets if path not in wanted]
        if request.image:
            image = _verify_image(request.image, request.at, wanted)
    except OSError as error:
        return Outcome(store_fault=str(error)[:MAX_TEXT])
    return Outcome(director, image)


def check_time(check: TimeCheck) -> TimeVerdict:
    """Verify an attested time with the timestamp key of the director's newest root.

    The root is walked to from the bootstrap, over what the folder holds and what has arrived. A key
    attests no time after the end of the root that names it.
    """
    try:
        root = _newest_root(check)
    except (RepositoryError, MemoryError) as error:
        return TimeVerdict(fault_of(error), str(error)[:MAX_TEXT])
    role = root.roles[Timestamp.type]
    keyids = sorted(role.keyids)
    if role.threshold != 1:
        text = f"an attested time has one signature; the director's root asks for {role.threshold}"
        return TimeVerdict("unsigned", text, keyids)
    key = root.keys.get(check.keyid)
    if check.keyid not in keyids or key is None:
        text = "the attested time is signed by a key that the director's root does not name"
        return TimeVerdict("unsigned", text, keyids)
    try:
        key.verify_signature(
            Signature(check.keyid, check.signature.hex()), attesting.signed_time(check.statement)
        )
        at = msgspec.msgpack.decode(check.statement, type=attesting.TimeStatement).at
    except (UnverifiedSignatureError, VerificationError) as error:
        return TimeVerdict("unsigned", str(error)[:MAX_TEXT], keyids)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return TimeVerdict("other", f"attested time: {error}"[:MAX_TEXT], keyids)
    if root.is_expired(datetime.datetime.fromtimestamp(at, datetime.UTC)):
        text = f"the director's root {root.version} ended before the attested time"
        return TimeVerdict("expired", text, keyids)
    return TimeVerdict(keyids=keyids)


def _verify_director(repository: Repository, at: float) -> Verified:
    try:
        client = _client(repository, Received(repository.parts), at)
        with _durably(client):
            client.refresh()
        role = client.root.roles[Targets.type]
        return Verified(
            targets={path: _target(target) for path, target in client.targets.targets.items()},
            own=client.targets.unrecognized_fields.get(trust.INSTRUCTIONS_FIELD),
            delegates=client.targets.delegations is not None,
            signers=client.signers(),
            keyids=sorted(role.keyids),
            threshold=role.threshold,
        )
    except _REFUSALS as error:
        return Verified(*_refusal(error))


def _verify_image(repository: Repository, at: float, wanted: list[str]) -> Verified:
    fetcher = Received(repository.parts)
    try:
        client = _client(repository, fetcher, at)
        with _durably(client):
            client.refresh()
            found = {path: _find(client, fetcher, path) for path in wanted}
    except _REFUSALS as error:
        return Verified(*_refusal(error))
    return Verified(
        found=found,
        own=client.targets.unrecognized_fields.get(trust.FLEET_FIELD),
        delegates=client.targets.delegations is not None,
    )


def _find(client: Client, fetcher: Received, path: str) -> Found:
    try:
        target = client.find(path)
    except _REFUSALS as error:
        return Found(None, fetcher.role, *_refusal(error))
    return Found(_target(target) if target else None)


def _client(repository: Repository, fetcher: Received, at: float) -> Client:
    return Client(Path(repository.folder), repository.bootstrap, fetcher, at)


@contextmanager
def _durably(client: Client) -> Iterator[None]:
    """Make durable what was verified: a new root counts whatever becomes of the roles below it."""
    try:
        yield
    finally:
        client.sync()


def _refusal(error: Exception) -> tuple[Fault, str]:
    text = str(error) or f"the metadata needs more than {MAX_MEMORY_BYTES} bytes of memory"
    if isinstance(error, DownloadError):
        text = f"a role is missing or too long: {text}"
    return fault_of(error), text[:MAX_TEXT]


def _target(target: TargetFile) -> Target:
    return Target(target.length, target.hashes, target.custom)


def _newest_root(check: TimeCheck) -> Root:
    root = Metadata[Root].from_bytes(check.bootstrap)
    root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    newest = root.signed
    history = Path(check.folder) / "root_history"
    while newest.version < bounds.MAX_ROOTS:
        number = newest.version + 1
        held = history / f"{number}.root.json"
        came = check.roots[number - 1] if len(check.roots) >= number else b""
        step = _root_after(newest, [held.read_bytes() if held.exists() else b"", came])
        if step is None:
            break
        newest = step
    return newest


def _root_after(root: Root, candidates: list[bytes]) -> Root | None:
    """Return the first candidate that follows on `root`, None if none does."""
    for data in candidates:
        if not data or len(data) > bounds.MAX_ROOT_BYTES:
            continue
        try:
            metadata = Metadata[Root].from_bytes(data)
            root.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
            step = metadata.signed
            step.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
        except RepositoryError:
            continue
        if step.type == Root.type and step.version == root.version + 1:
            return step
    return None


def main() -> int:
    """Answer one request."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    # A union is a type form, which the decoder takes like a type.
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request | TimeCheck)
    answer = refresh(request) if isinstance(request, Request) else check_time(request)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
