"""TensorRT's built engines on disk: which folder belongs to which model, and when it goes.

    engines/{digest of the model file}/{key of runtime, driver and machine}/

Building an engine takes minutes, so the trial does it, before the switch, and the serving process
finds it here. An engine is right only for the model, the runtime, TensorRT, the driver and the
GPU that it was built with; TensorRT itself checks only some of that. So a folder is never used
again once any of them is another: a different key is a different folder, and the folders of other
keys go when a new one is made. With the model file its engines go (`slots`).
"""

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

# What names the driver: on a desktop GPU, and on a Jetson.
_DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))
_TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")


def key(runtime: str, machine: str) -> str:
    """Return the name of a folder: equal only for the same runtime and the same machine."""
    return hashlib.sha256(f"{runtime}\n{machine}".encode()).hexdigest()[:16]


def machine_facts(driver_files: Collection[Path] = _DRIVER_FILES) -> str:
    """Return driver and TensorRT versions as text, as far as the machine tells them."""
    from importlib import metadata  # only where there is TensorRT

    facts = [path.read_text("utf-8", "replace") for path in driver_files if path.is_file()]
    for package in _TENSORRT_PACKAGES:
        try:
            facts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue  # TensorRT of the system, which the driver's release names on a Jetson
    return "\n".join(facts)


def folder_for(engines: Path, model: str, runtime: str, machine: str) -> Path:
    """Return the folder for a model's engines here, made if need be; folders of other keys go.

    Args:
        engines: folder of all engines.
        model: digest of the model file.
        runtime: name, version and build of the runtime.
        machine: from `machine_facts`.

    Raises:
        OSError: if it cannot be made.
    """
    own = engines / model / key(runtime, machine)
    own.mkdir(parents=True, exist_ok=True)
    for other in own.parent.iterdir():
        if other != own:
            shutil.rmtree(other)
    return own
