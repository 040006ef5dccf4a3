"""An exported log is believed only if not one byte, line or end of it is other than written."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import chain, export, log
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link
from edgefleet_cloud.trust.audit.checkpoints import Checkpoints
from edgefleet_cloud.trust.audit.export import Wanted
from edgefleet_cloud.trust.audit.verification import BrokenError, Verified, verify

NOW = 1_800_000_000.0
EVERYTHING = Wanted()


def fill(database: Database, audit: Checkpoints, counts: list[int]) -> None:
    """Write so many entries before each of as many checkpoints, by ada and bob in turns."""
    number = itertools.count()
    for count in counts:
        for _ in range(count):
            n = next(number)
            actor = Actor("ada" if n % 2 else "bob", "person")
            with acting(actor), database.write() as session:
                log.record(session, "thing.do", f"thing {n % 3}", NOW + n, after={"n": n})
        audit.sign()


def exported(database: Database, wanted: Wanted = EVERYTHING) -> list[bytes]:
    with database.read() as session:
        return [line.encode() for line in export.lines(session, wanted)]


@pytest.fixture
def audit(database: Database, tmp_path: Path) -> Checkpoints:
    return Checkpoints.open(database, tmp_path / "audit", lambda: NOW + 0.9)


def key(audit: Checkpoints) -> SSlibKey:
    public = audit.key.signer.public_key
    assert isinstance(public, SSlibKey)
    return public


def broken(lines: list[bytes], keys: list[SSlibKey], **options: object) -> tuple[str, int]:
    with pytest.raises(BrokenError) as caught:
        verify(lines, keys, **options)  # type: ignore[arg-type]  # options of verify
    return caught.value.kind, caught.value.number


def test_a_whole_log_is_verified(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [3, 2])
    held = verify(exported(database), [key(audit)])
    assert held == Verified(1, 5, 5, 5, int(NOW), audit.key.keyid, 2, 0)


def test_nothing_is_exported_before_something_is_signed(
    database: Database, audit: Checkpoints
) -> None:
    assert audit.sign() is None
    with pytest.raises(Exception, match="there is no signed part"):
        exported(database)


def test_a_part_of_the_log_is_held_to_the_same_signatures(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [4, 5, 2])
    lines = exported(database, Wanted(subject="thing 2", since=NOW + 3))
    seen: list[chain.Entry] = []
    held = verify(lines, [key(audit)], each=seen.append)
    assert [entry.number for entry in seen] == [6, 9]
    assert (held.first, held.last, held.entries, held.checkpoints) == (6, 11, 2, 2)
    lines[1] = lines[1].replace(b'"n":5', b'"n":4')
    assert broken(lines, [key(audit)]) == ("altered", 6)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(since=NOW + 2, until=NOW + 4), [3, 4]),
        (Wanted(actor="ada"), [2, 4, 6]),
        (Wanted(action="thing.do", subject="thing 0"), [1, 4, 7]),
        (Wanted(actor="nobody"), []),
    ],
)
def test_the_entries_asked_for_are_given_in_full(
    database: Database, audit: Checkpoints, wanted: Wanted, numbers: list[int]
) -> None:
    fill(database, audit, [7])
    seen: list[chain.Entry] = []
    verify(exported(database, wanted), [key(audit)], each=seen.append)
    assert [entry.number for entry in seen] == numbers


def test_an_altered_entry_is_named(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [3, 3])
    lines = exported(database)
    altered = [line.replace(b'"n":1}', b'"n":7}') for line in lines]
    assert broken(altered, [key(audit)]) == ("altered", 2)


def test_an_altered_omitted_entry_is_narrowed_down(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [6])
    lines = exported(database, Wanted(subject="thing 0"))
    at = next(n for n, line in enumerate(lines) if line.startswith(b'{"omitted"'))
    digests = json.loads(lines[at])["omitted"]
    lines[at] = lines[at].replace(digests[1].encode(), digests[0].encode())
    with pytest.raises(BrokenError, match="entry 4, or one of those omitted from 2 on") as caught:
        verify(lines, [key(audit)])
    assert (caught.value.kind, caught.value.number) == ("altered", 2)


def test_a_removed_entry_is_named(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [3, 3])
    lines = exported(database)
    del lines[2]
    assert broken(lines, [key(audit)]) == ("removed", 2)


def test_entries_in_another_order_are_named(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [5])
    lines = exported(database)
    lines[2], lines[4] = lines[4], lines[2]
    assert broken(lines, [key(audit)]) == ("reordered", 2)


def test_a_cut_file_says_so(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [2, 2])
    lines = exported(database)
    assert broken(lines[:-1], [key(audit)]) == ("cut", 4)
    # Also where it was cut at a checkpoint.
    assert broken(lines[:4], [key(audit)]) == ("cut", 3)


def rewritten(lines: list[bytes], old: bytes, new: bytes) -> list[bytes]:
    """Change an entry and every digest that follows from it."""
    made, digest = [], chain.START
    for line in lines:
        entry = line[85:-2].replace(old, new)
        if line.startswith(b'{"digest"'):
            digest = chain.follow(digest, chain.line_digest(entry.decode()))
            line = export.entry_line(digest, entry.decode()).encode() + b"\n"
        made.append(line)
    return made


def test_a_log_that_was_rewritten_with_its_digests_is_found_after_the_last_good_signature(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [2, 2, 2])
    lines = rewritten(exported(database), b'"n":3}', b'"n":8}')
    assert broken(lines, [key(audit)]) == ("rewritten", 3)


def test_a_signature_of_another_key_is_refused(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [2])
    other = CryptoSigner.generate_ed25519().public_key
    assert isinstance(other, SSlibKey)
    assert broken(exported(database), [other]) == ("signature", 2)
    # Also if the other key says that it is the one.
    posing = SSlibKey(audit.key.keyid, "ed25519", "ed25519", other.keyval)
    assert broken(exported(database), [posing]) == ("signature", 2)


def test_a_checkpoint_kept_elsewhere_shows_a_log_that_was_cut_and_signed_again(
    database: Database, audit: Checkpoints, tmp_path: Path
) -> None:
    fill(database, audit, [2])
    older = exported(database)
    fill(database, audit, [3])
    kept = audit.sign()
    assert kept is not None
    assert verify(exported(database), [key(audit)], known=[kept]).last == 5
    assert broken(older, [key(audit)], known=[kept]) == ("cut", 3)


def test_a_checkpoint_kept_elsewhere_shows_a_log_that_was_rewritten_with_the_stolen_key(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [4])
    kept = audit.sign()
    assert kept is not None
    lines = rewritten(exported(database), b'"n":1}', b'"n":9}')
    forged = Link(4, lines[-2][11:75].decode())
    signature = audit.key.signer.sign(chain.checkpoint_payload(forged, 7)).signature
    checkpoint = Checkpoint(4, forged.digest, 7, audit.key.keyid, signature)
    lines[-1] = msgspec.json.encode(export.Signed(checkpoint)) + b"\n"
    assert verify(lines, [key(audit)]).last == 4
    assert broken(lines, [key(audit)], known=[kept]) == ("rewritten", 4)


def test_a_kept_checkpoint_must_itself_be_signed_by_a_trusted_key(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [2])
    forged = Checkpoint(2, "0" * 64, 1, audit.key.keyid, "00" * 64)
    assert broken(exported(database), [key(audit)], known=[forged]) == ("signature", 2)


def test_kept_checkpoints_that_contradict_each_other_are_told(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [2])
    kept = audit.sign()
    assert kept is not None
    other = Link(2, "1" * 64)
    signature = audit.key.signer.sign(chain.checkpoint_payload(other, 1)).signature
    forked = Checkpoint(2, other.digest, 1, audit.key.keyid, signature)
    found = broken(exported(database), [key(audit)], known=[kept, forked])
    assert found == ("rewritten", 2)


def test_a_kept_checkpoint_before_the_file_says_nothing_of_it(
    database: Database, audit: Checkpoints
) -> None:
    fill(database, audit, [2])
    kept = audit.sign()
    assert kept is not None
    fill(database, audit, [3])
    lines = exported(database, Wanted(since=NOW + 2, subject="thing 2", actor="bob"))
    assert verify(lines, [key(audit)], known=[kept]).unused == 1


def test_another_version_of_the_form_is_refused(database: Database, audit: Checkpoints) -> None:
    fill(database, audit, [1])
    lines = exported(database)
    lines[0] = lines[0].replace(b'"audit":1', b'"audit":2')
    with pytest.raises(BrokenError, match="this is version 2"):
        verify(lines, [key(audit)])


# --- any change ----------------------------------------------------------------------------------


class Sample:
    """One log, whole and in part, made once for many examples."""

    def __init__(self, folder: Path, database: Database) -> None:
        audit = Checkpoints.open(database, folder / "audit", lambda: NOW)
        fill(database, audit, [4, 1, 6])
        self.key = key(audit)
        self.files = [exported(database), exported(database, Wanted(subject="thing 1"))]
        for lines in self.files:
            verify(lines, [self.key])


@pytest.fixture(scope="module")
def sample(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    folder = tmp_path_factory.mktemp("sample")
    database = Database(f"sqlite:///{folder / 'hub.db'}")
    yield Sample(folder, database)
    database.close()


@given(data=st.data())
def test_any_change_of_one_byte_is_found(sample: Sample, data: st.DataObject) -> None:
    whole = bytearray(b"".join(sample.files[data.draw(st.integers(0, 1))]))
    at = data.draw(st.integers(0, len(whole) - 1))
    what = data.draw(st.sampled_from(["change", "remove", "insert"]))
    byte = data.draw(st.integers(0, 255))
    if what == "change":
        assume(whole[at] != byte)
        whole[at] = byte
    elif what == "remove":
        del whole[at]
    else:
        whole.insert(at, byte)
    with pytest.raises(BrokenError):
        verify(bytes(whole).splitlines(keepends=True), [sample.key])


@given(data=st.data())
def test_any_line_removed_repeated_or_swapped_is_found(sample: Sample, data: st.DataObject) -> None:
    lines = list(sample.files[data.draw(st.integers(0, 1))])
    at = data.draw(st.integers(0, len(lines) - 1))
    to = data.draw(st.integers(0, len(lines) - 1))
    what = data.draw(st.sampled_from(["remove", "repeat", "swap"]))
    if what == "remove":
        del lines[at]
    elif what == "repeat":
        lines.insert(to, lines[at])
    else:
        assume(at != to)
        lines[at], lines[to] = lines[to], lines[at]
    with pytest.raises(BrokenError):
        verify(lines, [sample.key])


@given(data=st.data())
def test_any_cut_at_the_end_or_the_beginning_is_found(sample: Sample, data: st.DataObject) -> None:
    whole = b"".join(sample.files[data.draw(st.integers(0, 1))])
    at = data.draw(st.integers(1, len(whole) - 1))
    kept = data.draw(st.sampled_from([whole[:at], whole[at:]]))
    with pytest.raises(BrokenError):
        verify(kept.splitlines(keepends=True), [sample.key])


@given(junk=st.lists(st.binary(max_size=200), max_size=5))
def test_junk_is_refused_and_never_crashes(sample: Sample, junk: list[bytes]) -> None:
    for lines in (junk, [sample.files[0][0], *junk]):
        with pytest.raises(BrokenError):
            verify(lines, [sample.key])


def test_the_program_in_the_documentation_follows_the_chain(sample: Sample, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    for number, lines in enumerate(sample.files):
        path = tmp_path / f"log-{number}.jsonl"
        path.write_bytes(b"".join(lines))
        run = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.stdout == "the chain holds up to 11\n"
        path.write_bytes(b"".join(lines).replace(b'"n":7', b'"n":8'))
        assert subprocess.run(run, capture_output=True, check=False).returncode == 1
