"""The cache: folders that take long to make, each made once, whole or not at all.

A folder is made under another name beside its own and renamed when it is complete, so that a name
that exists is a folder that is whole, however its making may have ended.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def root() -> Path:
    """Return `EDGEFLEET_CACHE`, by default `~/.cache/edgefleet`."""
    given = os.environ.get("EDGEFLEET_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "edgefleet").absolute()


def folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; call `make` with an empty one where it is missing.

    What `make` raises goes on to the caller, and nothing is left behind. Of two processes that make
    the same folder at once, one wins and the other's work is dropped.
    """
    kept = root() / name
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{kept.name}-", dir=kept.parent))
    try:
        made.chmod(0o755)
        make(made)
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return kept
