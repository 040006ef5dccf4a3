"""Samples as tensors: sizes are checked before anything is unpacked, and nothing is unpickled."""

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters import tensor_files
from edgefleet_converters.errors import BadInputError


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "s.npz"
    np.savez_compressed(path, **arrays)
    return path


def member(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


def test_arrays_come_in_the_order_of_the_file_without_label_and_group(tmp_path: Path) -> None:
    pictures = np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(3, 4, 2))
    path = saved(
        tmp_path, z=pictures, label=np.array(["a", "b", "a"]), group=[1, 1, 2], a=np.ones((3, 1))
    )
    found = tensor_files.read(path)
    assert list(found.inputs) == ["z", "a"]
    assert np.array_equal(found.inputs["z"], pictures)
    assert found.labels is not None
    assert found.labels.tolist() == ["a", "b", "a"]
    assert found.groups is not None
    assert found.groups.tolist() == [1, 1, 2]


def test_label_and_group_may_have_other_names(tmp_path: Path) -> None:
    path = saved(tmp_path, X=np.ones((2, 3)), y=[0, 1], who=["u", "v"])
    found = tensor_files.read(path, "y", "who")
    assert (list(found.inputs), found.groups is not None) == (["X"], True)
    with pytest.raises(BadInputError, match="no array 'z'; there are X, y, who"):
        tensor_files.read(path, "z")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": [1, 2]}, "no array besides label and group"),
        ({"X": np.ones((2, 1)), "label": [1]}, r"as many rows in each array, found \{'X': 2"),
        ({"X": np.ones((0, 4))}, "as many rows in each array"),
        ({"X": np.ones((2, 1)), "label": np.ones((2, 1))}, r"label of the shape \(2, 1\)"),
        ({"X": np.array([["a"]])}, "'X' holds text; expected numbers"),
        ({"X": np.float64(3)}, r"shape \(\) of float64 does not fit"),
        ({"X": np.array([1j])}, "of the type complex128; expected numbers"),
        ({"X": np.array([b"a"])}, r"of the type \|S1; expected numbers"),
        ({"X": np.array([{}], object)}, "of the type object; expected numbers"),
        ({"X": np.array([(1, 2)], "i4,i4")}, "expected numbers"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        tensor_files.read(saved(tmp_path, **arrays))


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("X.npy", header((1 << 40, 1)), "does not fit 0 bytes"),
        ("X.npy", header((-1, 1)), "does not fit 0 bytes"),
        ("X.npy", header((4,)) + b"1234", "does not fit 4 bytes"),
        ("X.npy", b"\x93NUMPY\x03\x00" + bytes(80), r"version \(3, 0\); expected 1.0 or 2.0"),
        ("X.npy", b"no array", "damaged array"),
        ("X.txt", b"", "expected .npy members"),
        (".npy", b"", "expected .npy members"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_unpacked(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        tensor_files.read(member(tmp_path / "s.npz", name, data))


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, X=np.zeros((1000, 100)))
    monkeypatch.setattr(tensor_files, "MAX_TENSOR_BYTES", 800_000)
    assert path.stat().st_size < 10_000
    with pytest.raises(BadInputError, match="800128 bytes unpacked; at most 800000 are read"):
        tensor_files.read(path)


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none.npz: cannot be read: No such file"):
        tensor_files.read(tmp_path / "none.npz")
    (tmp_path / "csv.npz").write_text("a,b\n1,2\n")
    with pytest.raises(BadInputError, match=r"damaged, or no .npz file: File is not a zip file"):
        tensor_files.read(tmp_path / "csv.npz")


_GOOD = io.BytesIO()
np.savez_compressed(_GOOD, X=np.arange(60.0).reshape(20, 3), label=np.arange(20))


@given(st.lists(st.tuples(st.integers(0, len(_GOOD.getvalue()) - 1), st.integers(0, 255))))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(_GOOD.getvalue())
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(data)
    with contextlib.suppress(BadInputError):
        found = tensor_files.read(path)
        assert {len(values) for values in found.inputs.values()} <= set(range(1, 1000))
