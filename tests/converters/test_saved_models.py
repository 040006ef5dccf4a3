import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgefleet_converters import saved_models
from edgefleet_converters.errors import BadInputError

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index"}


def folder(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, files: dict[str, bytes], **settings: int) -> Path:
    with zipfile.ZipFile(path, "w", **settings) as archive:  # type: ignore[arg-type]  # compression
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_folder_zip_and_tar_give_the_same_bytes(tmp_path: Path) -> None:
    model = folder(tmp_path / "model")
    within = {f"export/{name}": content for name, content in reversed(FILES.items())}
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as archive:
        archive.add(model, "deep/down")
    packed = saved_models.pack(model)
    assert saved_models.pack(zipped(tmp_path / "m.zip", within)) == packed
    assert saved_models.pack(tmp_path / "m.tar.gz") == packed
    saved_models.unpack(packed, tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", "..\\escape"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="leads out of the archive"):
        saved_models.pack(zipped(tmp_path / "m.zip", FILES | {name: b"x"}))


def test_a_zip_bomb_is_stopped_while_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_models, "MAX_UNPACKED_BYTES", 3 << 20)
    bomb = zipped(tmp_path / "m.zip", FILES | {"bomb": bytes(4 << 20)}, compression=8)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(BadInputError, match="unpacks to more than 3 MiB"):
        saved_models.pack(bomb)


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        link = tarfile.TarInfo("saved_model.pb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(BadInputError, match="is a link or device"):
        saved_models.pack(tmp_path / "m.tar")
    model = folder(tmp_path / "model")
    (model / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadInputError, match="'link' is a link"):
        saved_models.pack(model)


def test_too_many_files_no_graph_and_damage_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match=r"holds 0 files saved_model\.pb"):
        saved_models.pack(zipped(tmp_path / "none.zip", {"readme": b""}))
    with pytest.raises(BadInputError, match=r"holds 2 files saved_model\.pb"):
        saved_models.pack(zipped(tmp_path / "two.zip", {"a/saved_model.pb": b"", **FILES}))
    (tmp_path / "cut.tar").write_bytes(b"no archive at all")
    with pytest.raises(BadInputError, match="damaged, or no archive"):
        saved_models.pack(tmp_path / "cut.tar")
    whole = io.BytesIO(zipped(tmp_path / "whole.zip", FILES).read_bytes()).getvalue()
    (tmp_path / "bad.zip").write_bytes(whole.replace(b"graph", b"grapf"))
    with pytest.raises(BadInputError, match="damaged, or no archive"):
        saved_models.pack(tmp_path / "bad.zip")
    monkeypatch.setattr(saved_models, "MAX_MEMBERS", 1)
    with pytest.raises(BadInputError, match="holds more than 1 files"):
        saved_models.pack(tmp_path / "whole.zip")
