"""Durable files: old content or new, never a part; one owner for a store."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgefleet_agent import files
from edgefleet_agent.errors import StoreError


def test_a_file_is_replaced_as_a_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.replace(path, b"one")
    files.replace(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failure_at_any_step_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "f"
    files.replace(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if call == "fsync":
            patched.setattr(files.os, "fsync", fail)
        elif call == "rename":
            patched.setattr(Path, "replace", fail)
        else:
            patched.setattr(files.os, "fdopen", fail)
        with pytest.raises(OSError, match="No space left"):
            files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def move(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", move)
    files.replace(tmp_path / "f", b"x")
    assert calls == ["file", "rename", "folder"]


def test_a_store_has_one_owner_and_is_free_again_when_that_dies(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgefleet_agent import files\n"
        "with files.locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="is in use by another agent"):
            files.locked(tmp_path).__enter__()
        other.kill()
    with files.locked(tmp_path):
        pass


def test_a_store_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StoreError, match="cannot be opened for writing"),
        files.locked(tmp_path / "file" / "store"),
    ):
        pass
