"""Asking a program of this package in a child process: one request in, one answer out, msgpack."""

import subprocess
import sys
from typing import TypeVar

import msgspec
from msgspec import Struct

from edgefleet_agent.errors import StoreError

Answer = TypeVar("Answer", bound=Struct)


def ask(
    program: str, request: Struct, kind: type[Answer], *, failed: str, timeout_s: float
) -> Answer:
    """Run a program and return its answer.

    Args:
        program: module below `edgefleet_agent.trusting`.
        request: written to its standard input.
        kind: of the answer, read from its standard output.
        failed: what could not be done without it, for the error.
        timeout_s: after which it is ended.

    Raises:
        StoreError: if it could not be started, or ended without an answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"edgefleet_agent.trusting.{program}"],
            input=msgspec.msgpack.encode(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
        return msgspec.msgpack.decode(done.stdout, type=kind)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"{failed}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{failed}: the child ended with code {done.returncode}") from error
