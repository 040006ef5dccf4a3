"""A Debian root of another architecture for qemu's user mode: made without running any of it.

debootstrap fetches the packages and checks them against Debian's signed lists; its first stage
needs no code of the other architecture. The few packages that a Python process needs are then
unpacked into the cache; nothing is installed, so root rights are needed for debootstrap only, and
fakeroot gives it enough of them.

Each processor sees the root through a *view*: links to it, and a `proc/cpuinfo` of its own. qemu
7.2 shows programs the host's file, an x86 one, on which onnxruntime and LiteRT crash when they look
for the core they run on.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgefleet_hardware import cache
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.runtimes import Processor

SUITE = "bookworm"
QEMU = "qemu-aarch64-static"
_DEBOOTSTRAP_S = 1200
# What `python3.11` and the native parts of the wheels load.
_PACKAGES = (
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgomp1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "python3.11-minimal",
    "zlib1g",
)


def command(processor: Processor) -> list[str]:
    """Return how a Python 3.11 is started on an emulated processor.

    Raises:
        TargetUnavailableError: qemu or debootstrap is missing, or Debian cannot be reached.
    """
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise TargetUnavailableError(f"{QEMU} is missing: install qemu-user-static")
    cores = os.cpu_count() or 1
    view = cache.folder(
        f"views/{SUITE}-arm64-{processor.name}-{cores}",
        lambda path: _link(path, _debian(), cpuinfo(processor, cores)),
    )
    # A named core, never `max`: with that, qemu 7.2 computes LiteRT's int8 kernels wrongly.
    return [qemu, "-L", str(view), "-cpu", processor.name, str(view / "usr/bin/python3.11")]


def cpuinfo(processor: Processor, cores: int) -> str:
    """Return `/proc/cpuinfo` as an ARM kernel prints it.

    Args:
        processor: core.
        cores: as many as this machine has: qemu tells programs on which of them they run, and
            onnxruntime 1.23 looks that number up in what this file lists, and aborts.
    """
    lines = {
        "BogoMIPS\t": "108.00",
        "Features\t": processor.features,
        "CPU implementer\t": "0x41",
        "CPU architecture": "8",
        "CPU variant\t": "0x0",
        "CPU part\t": processor.part,
        "CPU revision\t": "3",
    }
    same = "".join(f"{name}: {value}\n" for name, value in lines.items())
    return "".join(f"processor\t: {index}\n{same}\n" for index in range(cores))


def _link(path: Path, debian: Path, cpuinfo_text: str) -> None:
    for name in ("usr", "lib", "etc"):
        (path / name).symlink_to(debian / name)
    (path / "proc").mkdir()
    (path / "proc" / "cpuinfo").write_text(cpuinfo_text, encoding="ascii")


def _debian() -> Path:
    return cache.folder(f"sysroots/{SUITE}-arm64", _bootstrap)


def _bootstrap(path: Path) -> None:
    """Fetch the packages with debootstrap, then unpack those that are needed into `path`."""
    # Without one, debootstrap takes the mirror that Debian built it with.
    mirror = os.environ.get("EDGEFLEET_DEBIAN_MIRROR")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        told = _run(
            [
                *_as_root(),
                *("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase"),
                "--force-check-gpg",
                *(f"--include={','.join(_PACKAGES)}", SUITE, scratch),
                *([mirror] if mirror else []),
            ]
        )
        archives = Path(scratch) / "var/cache/apt/archives"
        for package in _PACKAGES:
            found = sorted(archives.glob(f"{package}_*.deb"))
            if not found:
                raise TargetUnavailableError(f"debootstrap fetched no {package}: {told[-500:]}")
            _run(["dpkg-deb", "-x", str(found[0]), str(path)])


def _as_root() -> list[str]:
    if os.geteuid() == 0:
        return []
    fakeroot = shutil.which("fakeroot")
    if fakeroot is None:
        raise TargetUnavailableError("debootstrap wants root rights: install fakeroot, or be root")
    return [fakeroot]


def _run(command: list[str]) -> str:
    """Run a program of Debian's; return what it printed."""
    program = next(
        part for part in command if part != "fakeroot" and not part.endswith("/fakeroot")
    )
    # debootstrap lies where only root's PATH looks.
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        told = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_DEBOOTSTRAP_S,
            check=False,
            env=environment,
        )
    except FileNotFoundError as error:
        raise TargetUnavailableError(f"{program} is missing: install it") from error
    except subprocess.TimeoutExpired as error:
        raise TargetUnavailableError(f"{program}: not done within {_DEBOOTSTRAP_S} s") from error
    said = told.stdout + told.stderr
    if told.returncode != 0:
        last = " ".join(said.split())[-500:]
        raise TargetUnavailableError(f"{program} left with code {told.returncode}: {last}")
    return said
