"""Exact runtime releases from the package index: wheels unpacked into a folder of the cache.

The same call serves this machine and emulated ones, because nothing is built or run: only wheels
are taken, for a platform and a Python that are named. uv or pip is used, with whatever index is
configured for it. A folder is the whole environment of a run: the interpreter is started without
`site`, so that nothing of the caller's environment is found.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from edgefleet_hardware import cache
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.runtimes import Runtime

# The Python that every wheel from onnxruntime 1.16 and tflite-runtime 2.14 on is there for, and
# that the sysroot's Debian has.
PYTHON = "3.11"
# glibc of Debian 12, the sysroot's: wheels that need a newer one would not load there.
_GLIBC_MINOR = 36
_INSTALL_S = 900
# Built against numpy 1; under numpy 2 they fail when they are loaded.
_NUMPY_2_SINCE = {"onnxruntime": (1, 19), "tflite-runtime": (3,), "ai-edge-litert": (2,)}


def folder(runtime: Runtime, architecture: str) -> Path:
    """Return the folder of a runtime release, fetched where it is missing.

    Args:
        runtime: exact release.
        architecture: of the wheels: `x86_64` or `aarch64`.

    Raises:
        TargetUnavailableError: there is no such release for this Python and platform, or no
            installer or index.
    """
    name = f"packages/{runtime.name}-{runtime.version}-{architecture}-cp{PYTHON.replace('.', '')}"
    return cache.folder(name, lambda path: _install(path, runtime, architecture))


def requirements(runtime: Runtime) -> list[str]:
    """Return what is installed for a runtime: itself, and numpy of the right age."""
    release = tuple(int(part) for part in runtime.version.split(".") if part.isdigit())
    old = release < _NUMPY_2_SINCE[runtime.name]
    return [str(runtime), "numpy<2"] if old else [str(runtime)]


def interpreter() -> Path:
    """Return a Python of the version that the wheels are for: this one, one on PATH, or uv's.

    Raises:
        TargetUnavailableError: there is none.
    """
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        return Path(sys.executable)
    found = shutil.which(f"python{PYTHON}")
    if found:
        return Path(found)
    uv = shutil.which("uv")
    if uv:
        told = subprocess.run(
            [uv, "python", "find", PYTHON], capture_output=True, text=True, check=False
        )
        if told.returncode == 0:
            return Path(told.stdout.strip())
    raise TargetUnavailableError(
        f"no Python {PYTHON} on PATH, for which all runtime releases have wheels; install it, or"
        f" `uv python install {PYTHON}`"
    )


def _install(path: Path, runtime: Runtime, architecture: str) -> None:
    command = [*_installer(path, architecture), *requirements(runtime)]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TargetUnavailableError(f"{runtime}: not installed within {_INSTALL_S} s") from error
    if told.returncode != 0:
        last = " ".join(told.stderr.split())[-500:]
        raise TargetUnavailableError(
            f"{runtime}: no wheels for Python {PYTHON} on {architecture} could be installed: {last}"
        )


def _installer(path: Path, architecture: str) -> list[str]:
    uv = shutil.which("uv")
    if uv:
        platform = f"{architecture}-manylinux_2_{_GLIBC_MINOR}"
        return [
            *(uv, "pip", "install", "--quiet", "--target", str(path), "--only-binary", ":all:"),
            *("--python-version", PYTHON, "--python-platform", platform),
        ]
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(_GLIBC_MINOR, 16, -1)]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(path)),
        *("--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp"),
        *(word for tag in [*tags, f"manylinux2014_{architecture}"] for word in ("--platform", tag)),
    ]
