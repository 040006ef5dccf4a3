"""Run one function in a child process of its own, with limits of time and memory.

Loading a model can run code (pickle), kill the process (some TFLite files), never return (a Loop
without an end) or take all memory; so nothing of that happens in the caller's process. Rules:

1. The child is a fresh interpreter (never a fork): no thread, lock or TensorFlow state comes along,
   and `PYTHONHASHSEED=0` makes exporters that iterate over sets write equal bytes.
2. The function and its arguments go in by pickle, from this process, which trusts itself. What
   comes back may have been written by code out of a model file, so it is decoded as the declared
   type and never unpickled.
3. A `ConversionError` raised in the child is raised again here with its type. Anything else is a
   `ChildError` with the child's last lines.
4. The child dies when its parent does, however that happens: the kernel sends SIGIO when the
   parent's end of a pipe is closed, which works even while native code holds the interpreter.
"""

import contextlib
import fcntl
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
import psutil
from msgspec import Struct

from edgefleet_converters import errors
from edgefleet_converters.errors import (
    ChildCrashedError,
    ChildError,
    ChildMemoryError,
    ChildTimeoutError,
    ConversionError,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
Progress = Callable[[float, str], None]

_POLL_S = 0.05
_LAST_LINES = 15
# POSIX guarantees that a write of up to 512 bytes into a pipe is not torn; Linux 4096.
_NOTICE_BYTES = 500
_ENTRY = "from edgefleet_converters.child import _serve; _serve()"
_notices: Connection | None = None


class ChildLimits(Struct, frozen=True):
    """What a child may take.

    Attributes:
        time_s: wall time; ten minutes hold any model of the supported class several times over.
        memory_bytes: resident memory, looked at 20 times a second. TensorFlow alone takes 0.6 GiB.
        from_report: whether the time is counted from the function's last report: for functions
            that do a known number of things and report before each.
    """

    time_s: float = 600.0
    memory_bytes: int = 4 << 30
    from_report: bool = False


class _Failure(Struct):
    """How the function failed in the child."""

    kind: str
    text: str


def run(
    what: str,
    function: Callable[..., T],
    *args: object,
    returns: type[T],
    limits: ChildLimits | None = None,
    progress: Progress | None = None,
) -> T:
    """Call `function(*args)` in a child process and return what it returns.

    Args:
        what: is being done, for error texts (`converting cnn.keras`).
        function: importable by name; it may call `report`.
        args: must be picklable.
        returns: type of the answer: structs, built-in values, bytes and numeric numpy arrays.
        limits: of the child.
        progress: gets what the function reports. If it raises, the child is killed and the
            exception goes on: that is how a caller cancels.

    Raises:
        ConversionError: as raised by the function.
        ChildError: the child crashed, hung, took too much memory or raised something else.
    """
    limits = limits or ChildLimits()
    with contextlib.ExitStack() as stack:
        request, answer, log = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        pickle.dump(sys.path, request)  # by which the child finds the function
        pickle.dump((function, args), request)
        request.seek(0)
        life_read, life_write = os.pipe()
        stack.callback(os.close, life_write)
        notice_read, notice_write = os.pipe()
        notices = stack.enter_context(Connection(notice_read, writable=False))
        try:
            process = _start(request, log, [life_read, notice_write, answer.fileno()])
        finally:
            os.close(life_read)
            os.close(notice_write)
        stack.callback(_kill, process)
        try:
            _watch(what, process, notices, limits, progress)
        except ChildError as error:
            raise type(error)(f"{error}{_tail(log)}") from None
        return _answer(what, process.returncode, answer, log, returns)


def report(fraction: float, text: str) -> None:
    """Tell the parent how far this function is; without a parent, do nothing.

    Args:
        fraction: share done, 0 to 1.
        text: what is being done now.
    """
    if _notices is not None:
        notice = text.encode()[: _NOTICE_BYTES - 50].decode(errors="ignore")
        _notices.send_bytes(msgspec.msgpack.encode((float(fraction), notice)))


def _environment() -> dict[str, str]:
    """Return the child's environment: without the settings of a hub, some of which are secrets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEFLEET_")}
    return kept | {"PYTHONHASHSEED": "0"}


def _start(request: IO[bytes], log: IO[bytes], descriptors: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _ENTRY, *map(str, descriptors)],
        stdin=request,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=descriptors,
        env=_environment(),
        start_new_session=True,  # so that its own children can be killed with it
    )


def _watch(
    what: str,
    process: subprocess.Popen[bytes],
    notices: Connection,
    limits: ChildLimits,
    progress: Progress | None,
) -> None:
    """Wait for the end of the child; kill it at a limit."""
    deadline = time.monotonic() + limits.time_s
    open_ = True
    # What the child told last is still to be read when it has ended.
    while process.poll() is None or (open_ and notices.poll()):
        if open_ and notices.poll(_POLL_S):
            try:
                notice = notices.recv_bytes(_NOTICE_BYTES)
            except (EOFError, OSError):
                open_ = False
                continue
            if limits.from_report:
                deadline = time.monotonic() + limits.time_s
            if progress is not None:
                progress(*msgspec.msgpack.decode(notice, type=tuple[float, str]))
        elif not open_:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
        if time.monotonic() > deadline:
            _kill(process)
            raise ChildTimeoutError(f"{what}: no answer within {limits.time_s:g} s, stopped")
        held = _resident(process.pid)
        if held > limits.memory_bytes:
            _kill(process)
            raise ChildMemoryError(
                f"{what}: took {held >> 20} MiB of memory; {limits.memory_bytes >> 20} MiB are"
                " allowed"
            )


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended; the caller sees that next


def _kill(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader if the function started processes of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answer(what: str, code: int, answer: IO[bytes], log: IO[bytes], returns: type[T]) -> T:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often the kernel, out of memory)" if -code == signal.SIGKILL else ""
        raise ChildCrashedError(f"{what}: the process was killed by {name}{hint}{_tail(log)}")
    answer.seek(0)
    data = answer.read()
    if not data:
        raise ChildCrashedError(f"{what}: the process left with code {code}{_tail(log)}")
    if code == 0:
        logger.debug("%s: child finished%s", what, _tail(log))
        try:
            return msgspec.msgpack.decode(data, type=returns, dec_hook=decode_array)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise ChildError(f"{what}: the answer is no {returns.__name__}: {error}") from error
    failure = msgspec.msgpack.decode(data, type=_Failure)
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, ConversionError):
        raise kind(failure.text)
    raise ChildError(f"{what}: {failure.kind}: {failure.text}{_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 16_384))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "; last lines:\n" + "\n".join(lines[-_LAST_LINES:]) if lines else ""


def encode_array(value: object) -> object:
    """Return an array as `[dtype, shape, bytes]`, for msgspec's `enc_hook`."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return [value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"a child cannot return a {type(value).__name__}")


def decode_array(kind: type[Any], value: Any) -> object:
    """Return the array that `encode_array` wrote, for msgspec's `dec_hook`."""
    if getattr(kind, "__origin__", kind) is not np.ndarray:
        raise NotImplementedError(f"a child cannot return a {kind}")
    dtype, shape, data = value
    if np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"array of type {dtype}")
    return np.frombuffer(data, dtype).reshape(shape)


def _serve() -> None:
    """Be the child: read the call from standard input, make it, write the answer."""
    global _notices  # one child makes one call; `report` has no other way to find its parent
    life, notice, result = (int(argument) for argument in sys.argv[1:4])
    _die_with_parent(life)
    for descriptor in (life, notice, result):
        os.set_inheritable(descriptor, False)
    _notices = Connection(notice, readable=False)
    sys.path = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    function, args = pickle.load(sys.stdin.buffer)  # noqa: S301  # likewise
    code, value = 0, None
    try:
        value = function(*args)
        data = msgspec.msgpack.encode(value, enc_hook=encode_array)
    except MemoryError:
        code = 1
        data = msgspec.msgpack.encode(_Failure("ChildMemoryError", "out of memory"))
    except Exception as error:  # the parent raises it again: see `_answer`
        if not isinstance(error, ConversionError):
            logging.getLogger(__name__).exception("call failed")
        code = 1
        data = msgspec.msgpack.encode(_Failure(type(error).__name__, str(error)))
    with os.fdopen(result, "wb") as file:
        file.write(data)
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries may hang or crash in their destructors; the answer is written.
    os._exit(code)


def _die_with_parent(life: int) -> None:
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action ends the process
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:
        os._exit(1)  # the parent ended before this was set up
