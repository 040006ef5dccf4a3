"""What is fetched and made for a target: wheels, the Debian root, its views, the cache."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgefleet_hardware import cache, packages, sysroot
from edgefleet_hardware.cases import Case, Expected, Limits
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.local import LocalTarget
from edgefleet_hardware.runtimes import NEWEST, PROCESSORS, Runtime

A53 = PROCESSORS["cortex-a53"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_made_once(empty: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        (path / "file").write_text("whole")

    assert cache.folder("a/b", make) == cache.folder("a/b", make) == empty / "a/b"
    assert len(made) == 1
    assert (empty / "a/b/file").read_text() == "whole"


def test_a_folder_that_was_not_finished_leaves_nothing(empty: Path) -> None:
    def half(path: Path) -> None:
        (path / "file").write_text("half")
        raise TargetUnavailableError("the network went away")

    with pytest.raises(TargetUnavailableError, match="went away"):
        cache.folder("a", half)
    assert list(empty.iterdir()) == []


def test_of_two_that_make_a_folder_at_once_the_first_stays(empty: Path) -> None:
    def late(path: Path) -> None:
        (path / "file").write_text("second")
        cache.folder("a", lambda inner: (inner / "file").write_text("first") and None)

    assert (cache.folder("a", late) / "file").read_text() == "first"
    assert [path.name for path in empty.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("runtime", "numpy"),
    [
        ("onnxruntime==1.16.3", ["numpy<2"]),
        ("onnxruntime==1.18.1", ["numpy<2"]),
        ("onnxruntime==1.19.0", []),
        ("onnxruntime==1.31.1", []),
        ("tflite-runtime==2.14.0", ["numpy<2"]),
        ("ai-edge-litert==1.4.0", ["numpy<2"]),
        ("ai-edge-litert==2.0.3", []),
    ],
)
def test_runtimes_built_against_numpy_1_get_it(runtime: str, numpy: list[str]) -> None:
    assert packages.requirements(Runtime.parse(runtime)) == [runtime, *numpy]


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.usefixtures("empty")
def test_wheels_are_asked_for_by_platform_and_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "uv", f'echo "$@" > {tmp_path}/asked')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    packages.folder(Runtime.parse("onnxruntime==1.18.1"), "aarch64")
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-2:] == ["onnxruntime==1.18.1", "numpy<2"]
    for pair in ("--python-platform aarch64-manylinux_2_36", "--python-version 3.11"):
        assert pair in " ".join(asked)
    assert "--only-binary :all:" in " ".join(asked)


def test_a_release_that_does_not_exist_is_named(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "uv", "echo no such version >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(TargetUnavailableError, match=r"onnxruntime==9\.9: no wheels .* no such"):
        packages.folder(Runtime.parse("onnxruntime==9.9"), "x86_64")
    assert not list(empty.rglob("*onnxruntime*"))


def test_the_interpreter_is_of_the_version_that_the_wheels_are_for() -> None:
    try:
        found = packages.interpreter()
    except TargetUnavailableError as error:
        pytest.skip(str(error))
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"Python {packages.PYTHON}.")


@pytest.mark.usefixtures("empty")
def test_without_an_emulator_a_target_cannot_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetUnavailableError, match="qemu-aarch64-static is missing: install"):
        sysroot.command(A53)


def test_a_core_is_emulated_by_its_name_on_a_root_with_its_own_cpuinfo(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = empty / f"sysroots/{sysroot.SUITE}-arm64"
    (debian / "usr/bin").mkdir(parents=True)
    fake(tmp_path / "bin", sysroot.QEMU, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    command = sysroot.command(A53)
    view = Path(command[2])
    assert command[0] == str(tmp_path / "bin" / sysroot.QEMU)
    assert command[1:] == ["-L", str(view), "-cpu", "cortex-a53", str(view / "usr/bin/python3.11")]
    assert (view / "usr").resolve() == debian / "usr"
    text = (view / "proc/cpuinfo").read_text()
    assert text.count("CPU part\t: 0xd03\n") == os.cpu_count()
    assert "asimddp" not in text


def test_as_many_cores_are_listed_as_programs_may_run_on() -> None:
    blocks = sysroot.cpuinfo(PROCESSORS["cortex-a76"], 3).split("\n\n")
    assert [block.splitlines()[0] for block in blocks if block] == [
        f"processor\t: {index}" for index in range(3)
    ]
    assert "asimddp" in blocks[2]


def test_a_bootstrap_that_fails_says_what_debootstrap_said(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", sysroot.QEMU, "exit 0")
    fake(tmp_path / "bin", "fakeroot", 'exec "$@"')
    fake(tmp_path / "bin", "debootstrap", "echo E: no such mirror; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(TargetUnavailableError, match="debootstrap left with code 1: E: no such"):
        sysroot.command(A53)
    assert not [path for path in empty.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mirror", [None, "https://mirror.example/debian"])
def test_the_mirror_is_debootstraps_own_unless_one_is_named(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str | None
) -> None:
    fake(tmp_path / "bin", sysroot.QEMU, "exit 0")
    fake(tmp_path / "bin", "fakeroot", 'exec "$@"')
    fake(tmp_path / "bin", "debootstrap", 'for word; do :; done; echo "last: $word"; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    if mirror is None:
        monkeypatch.delenv("EDGEFLEET_DEBIAN_MIRROR", raising=False)
    else:
        monkeypatch.setenv("EDGEFLEET_DEBIAN_MIRROR", mirror)
    # Before the mirror stands the folder to fill.
    with pytest.raises(TargetUnavailableError, match=f"last: {mirror or empty}"):
        sysroot.command(A53)


def test_this_machine_does_not_pass_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    target = LocalTarget(Runtime.parse("onnxruntime==1.31.1"), PROCESSORS["x86-64"])
    with pytest.raises(TargetUnavailableError, match="this machine is riscv64"):
        target.run([Case("m", "onnx", b"")])


def test_an_emulated_core_computes_what_this_machine_does() -> None:
    runtime = Runtime.parse(NEWEST["onnx"])
    name = f"packages/{runtime.name}-{runtime.version}-aarch64-cp311"
    if not (cache.root() / name).is_dir() or shutil.which(sysroot.QEMU) is None:
        pytest.skip("no emulated target in the cache; `make compat` puts one there")
    if not (cache.root() / f"sysroots/{sysroot.SUITE}-arm64").is_dir():
        pytest.skip("no Debian root in the cache; `make compat` puts one there")
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    right = np.exp(rows) / np.exp(rows).sum(axis=-1, keepdims=True)
    case = Case(
        "softmax",
        "onnx",
        model.SerializeToString(),
        inputs={"x": rows},
        expected=Expected({"y": right}, {"y": 1e-6}, 2),
        limits=Limits(60.0),
    )
    (outcome,) = LocalTarget(runtime, A53, loads=2).run([case])
    assert outcome.is_right, outcome.detail
    assert outcome.latency_us is None
