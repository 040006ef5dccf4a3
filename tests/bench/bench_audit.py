"""What verifying a log of decisions costs, beside the SHA-256 of its bytes alone.

The log has a million entries of the size of a real one, with a checkpoint every hundred, and is
verified as a file; the floor reads the same file and hashes each line, and nothing else.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.trust.audit import chain, export
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link
from edgefleet_cloud.trust.audit.checkpoints import ENTRIES
from edgefleet_cloud.trust.audit.verification import verify
from tests.bench.metric import Metric

COUNT = 1_000_000


def run() -> list[Metric]:
    """Measure one pass over the file, each way."""
    signer = CryptoSigner.generate_ed25519()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with path.open("wb") as file:
            file.writelines(_lines(signer))
        floor_s = _floor(path)
        began = time.perf_counter()
        with path.open("rb") as file:
            held = verify(file, [signer.public_key])
        verified_s = time.perf_counter() - began
        size_bytes = path.stat().st_size
    assert held.last == COUNT
    return [
        Metric(
            "audit: entries verified a second (1,000,000 entries)",
            COUNT / verified_s,
            "1/s",
            "read and SHA-256 of each line",
            COUNT / floor_s,
        ),
        Metric(
            "audit: verifying 1,000,000 entries",
            verified_s,
            "s",
            f"read and SHA-256 of {size_bytes / 1e6:.0f} MB",
            floor_s,
        ),
    ]


def _floor(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            hashlib.sha256(line).digest()
    return time.perf_counter() - began


def _lines(signer: CryptoSigner) -> Iterator[bytes]:
    numbers = list(range(ENTRIES, COUNT + 1, ENTRIES))
    header = export.Header(chain.VERSION, Link(0, chain.START), numbers)
    yield msgspec.json.encode(header) + b"\n"
    digest = chain.START
    for number in range(1, COUNT + 1):
        line = chain.encode(_entry(number))
        digest = chain.follow(digest, chain.line_digest(line))
        yield export.entry_line(digest, line).encode() + b"\n"
        if number % ENTRIES == 0:
            payload = chain.checkpoint_payload(Link(number, digest), number)
            signature = signer.sign(payload)
            signed = Checkpoint(number, digest, number, signature.keyid, signature.signature)
            yield msgspec.json.encode(export.Signed(signed)) + b"\n"


def _entry(number: int) -> chain.Entry:
    return chain.Entry(
        v=chain.VERSION,
        number=number,
        at=1_800_000_000.0 + number,
        actor="ada",
        kind="person",
        action="version.approve",
        subject=f"digits {number}",
        before={"state": "registered"},
        after={"state": "approved", "decision": {"by": "operator", "reason": "better"}},
        reason="better than the champion on the same rows",
    )
