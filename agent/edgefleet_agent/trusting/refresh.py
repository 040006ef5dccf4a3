"""What is asked of the TUF client, and asking it in a child process.

python-tuf and cryptography take 12 MiB that an agent needs for some milliseconds a day. So the
client workflow runs in a child (`tufclient`) that ends afterwards; bytes from the network are
parsed there too. The child's answer is a verdict only: what it verified lies in the folder.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from edgefleet_agent.errors import StoreError

# A Raspberry Pi Zero takes some seconds to start Python and read its card. The engine waits: two
# of these are less than the watchdog's limit of one turn.
CHILD_TIMEOUT_S = 25.0
# One sentence of the client; the folder holds the rest.
MAX_TEXT = 1000

Fault = Literal["", "unsigned", "expired", "length-or-hash", "version", "other"]


class Request(Struct, frozen=True):
    """One refresh of one repository.

    Attributes:
        folder: of the client's trusted metadata.
        bootstrap: version 1 of the root, from enrolment.
        parts: file name → content, as it arrived.
    """

    folder: str
    bootstrap: bytes
    parts: dict[str, bytes]


class Outcome(Struct, frozen=True):
    """What the client said.

    Attributes:
        fault: empty if everything was verified and lies in the folder, durably.
        store_fault: the folder could not be written or read; nothing is known of the metadata.
    """

    fault: Fault = ""
    text: str = ""
    store_fault: str = ""


Refresh = Callable[[Request], Outcome]


def in_child(request: Request, *, timeout_s: float = CHILD_TIMEOUT_S) -> Outcome:
    """Run the client workflow in a child process.

    Raises:
        StoreError: if the child could not be started, or ended without an answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgefleet_agent.trusting.tufclient"],
            input=msgspec.msgpack.encode(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
        return msgspec.msgpack.decode(done.stdout, type=Outcome)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"signed metadata could not be judged: {error}") from error
    except msgspec.DecodeError as error:
        raise StoreError(
            f"signed metadata could not be judged: the child ended with code {done.returncode}"
        ) from error
