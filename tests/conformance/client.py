"""The client under test: `init`, `refresh` and `download` as the conformance suite calls them.

    python -m tests.conformance.client [--over HOST:PORT] --metadata-dir D init ROOT

The workflow is the one that the agent runs in its child (`tufclient.Client`), with its bounds; only
the fetcher differs: HTTP, or with `--over` MQTT by a relay (`relay`). Exit code 0 or 1.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import DownloadError, LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_agent import files
from edgefleet_agent.trusting.tufclient import Client
from tests.conformance.fetchers import HttpFiles, MqttFiles

# The root that the device was given at enrolment; beside what the client trusts, as in a store.
BOOTSTRAP = "enrolled-root"


def main() -> int:
    """Run one command; return the exit code."""
    given = _arguments()
    folder: Path = given.metadata_dir
    if given.command == "init":
        files.replace(folder / BOOTSTRAP, given.root.read_bytes())
        return 0
    try:
        with _files(given.over) as fetcher:
            client = Client(
                folder,
                (folder / BOOTSTRAP).read_bytes(),
                fetcher,
                time.time(),
                _with_slash(given.metadata_url),
            )
            try:
                client.refresh()
                for name in given.target_name if given.command == "download" else ():
                    _download(client, fetcher, name, given.target_base_url, given.target_dir)
            finally:
                client.sync()
    except (RepositoryError, DownloadError, OSError) as error:
        print(f"refused: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="client", description=__doc__)
    parser.add_argument("--over", default="", metavar="HOST:PORT", help="a broker with a relay")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path, default=Path())
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args()


def _files(over: str) -> AbstractContextManager[FetcherInterface]:
    host, _, port = over.rpartition(":")
    return MqttFiles(host, int(port)) if over else nullcontext(HttpFiles())


def _download(
    client: Client, fetcher: FetcherInterface, name: str, base_url: str, folder: Path
) -> None:
    """Fetch one target that the metadata vouches for, unless the very same is there already."""
    target = client.find(name)
    if target is None:
        raise RepositoryError(f"no role lists {name!r}")
    path = folder / quote(name, "")
    if path.exists() and _is(target, path.read_bytes()):
        return
    url = _with_slash(base_url) + _file_name(client, target)
    data = fetcher.download_bytes(url, target.length)
    target.verify_length_and_hashes(data)
    files.replace(path, data)


def _file_name(client: Client, target: TargetFile) -> str:
    if not client.root.consistent_snapshot:
        return target.path
    folder, slash, name = target.path.rpartition("/")
    return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"


def _is(target: TargetFile, data: bytes) -> bool:
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        return False
    return True


def _with_slash(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


if __name__ == "__main__":
    sys.exit(main())
