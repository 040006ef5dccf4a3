"""Writing files of the trust folder so that neither a crash nor a power cut leaves half of one.

Write to a new name, fsync, rename over the old one, fsync the folder.
"""

import os
import tempfile
from pathlib import Path

PRIVATE, PUBLIC = 0o600, 0o644


def write(path: Path, data: bytes, *, mode: int) -> None:
    """Replace `path` by a file with `data`, durable when this returns.

    Args:
        path: its folder is created if missing, closed to other users.
        data: whole content.
        mode: `PRIVATE` for keys, `PUBLIC` for what may be read by anyone.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
