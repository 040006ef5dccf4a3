"""Files that people send: put down under their own name, so that errors can name them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from fastapi import UploadFile

from edgefleet_cloud.errors import InvalidError
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Table, read_table

MAX_NAME_BYTES = 200


@contextmanager
def on_disk(upload: UploadFile, folder: Path) -> Iterator[Path]:
    """Give the upload as a file in a scratch folder below `folder`, removed afterwards.

    Raises:
        InvalidError: if it has no usable file name, or what is done with it refuses the content;
            the text names the file as the sender did.
    """
    name = PurePath((upload.filename or "").replace("\\", "/")).name
    # File systems count bytes, up to 255, and know no NUL.
    if not name or name == ".." or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidError("the file has no usable name; expected something like `data.csv`")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / name
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file, 1 << 20)
        try:
            yield path
        except BadInputError as error:
            raise InvalidError(str(error).replace(str(path), name)) from error


def read_upload(upload: UploadFile, folder: Path) -> Table:
    """Return the table in an uploaded CSV or Parquet file.

    Raises:
        InvalidError: if it cannot be read; the text says where.
    """
    with on_disk(upload, folder) as path:
        return Table(path.name, read_table(path).columns)
