"""Stopping a device process at each system call that changes its disk, to kill it or to fail it.

The process under test is the production code as it is: nothing in it knows of faults. It is forked
from the caller, traced with ptrace(2), and stopped before and after every call that changes
something below one folder: Python's, SQLite's and python-tuf's alike, whatever thread makes it. At
a stop it can be killed (SIGKILL: what the kernel was told stays, nothing more happens), or the call
can be made to fail. Numbers and arguments of the calls are Linux's on x86-64 and on 64-bit ARM;
failing a call is done on x86-64 only.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# ptrace(2), <linux/ptrace.h>
_TRACEME, _SYSCALL, _POKEUSER = 0, 24, 6
_SETOPTIONS, _GET_SYSCALL_INFO = 0x4200, 0x420E
_OPTIONS = 0x1 | 0x8 | 0x100000  # TRACESYSGOOD, TRACECLONE (threads), EXITKILL
_INFO_ENTRY, _INFO_EXIT = 1, 2
_STOPPED_AT_CALL = signal.SIGTRAP | 0x80
_WALL = 0x40000000
# Offsets in `struct user` of x86-64, in bytes.
_ORIG_RAX, _RAX = 15 * 8, 10 * 8

# name: (number on x86-64, number on arm64, argument of the file descriptor, arguments of paths)
_CALLS: dict[str, tuple[int, int, int | None, tuple[int, ...]]] = {
    "write": (1, 64, 0, ()),
    "pwrite": (18, 68, 0, ()),
    "writev": (20, 66, 0, ()),
    "pwritev": (296, 70, 0, ()),
    "sendfile": (40, 71, 0, ()),
    "copy_file_range": (326, 285, 2, ()),
    "ftruncate": (77, 46, 0, ()),
    "fallocate": (285, 47, 0, ()),
    "fsync": (74, 82, 0, ()),
    "fdatasync": (75, 83, 0, ()),
    "open": (2, -2, None, (0,)),
    "openat": (257, 56, None, (1,)),
    "rename": (82, -2, None, (0, 1)),
    "renameat": (264, 38, None, (1, 3)),
    "renameat2": (316, 276, None, (1, 3)),
    "unlink": (87, -2, None, (0,)),
    "unlinkat": (263, 35, None, (1,)),
    "mkdir": (83, -2, None, (0,)),
    "mkdirat": (258, 34, None, (1,)),
    "rmdir": (84, -2, None, (0,)),
    "link": (86, -2, None, (0, 1)),
    "linkat": (265, 37, None, (1, 3)),
    "symlink": (88, -2, None, (1,)),
    "symlinkat": (266, 36, None, (2,)),
    "truncate": (76, 45, None, (0,)),
}
_FLAGS_ARGUMENT = {"open": 1, "openat": 2}
_ON_X86 = platform.machine() == "x86_64"
_BY_NUMBER = {call[0 if _ON_X86 else 1]: name for name, call in _CALLS.items()}
CAN_FAIL_CALLS = _ON_X86

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Info(ctypes.Structure):
    """`struct ptrace_syscall_info`; at an exit the first argument slot is the return value."""

    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_int64),
        ("args", ctypes.c_uint64 * 6),
    ]


@dataclass(frozen=True)
class Call:
    """A call that is about to change the disk, or just has.

    Attributes:
        number: how many such calls were before it.
        name: of the system call, without the `at` of its newer form.
        path: below the folder that is watched; of a rename, the old name.
        new_path: of a rename or link, the new name; else the same as `path`.
    """

    number: int
    name: str
    path: str
    new_path: str

    def __str__(self) -> str:
        target = f" → {self.new_path}" if self.new_path != self.path else ""
        return f"{self.name} {self.path}{target}"


class Fate(Enum):
    """What becomes of a process at a stop."""

    GO_ON = "go on"
    KILL = "kill"


Before = Callable[[Call], Fate | int]
After = Callable[[Call], None]


def run(
    work: Callable[[], None],
    folder: Path,
    before: Before = lambda _: Fate.GO_ON,
    after: After = lambda _: None,
) -> int:
    """Run `work` in a forked process and stop it at each call that changes `folder`.

    Args:
        work: of the child; it exits with 0 if this returns, else with 1.
        folder: that is watched, with everything below it.
        before: called before each call; says `GO_ON`, `KILL`, or gives the errno with which the
            call fails instead of being made.
        after: called after each call that was made.

    Returns:
        The child's exit code, or minus the signal that ended it.
    """
    pid = os.fork()
    if pid == 0:
        _be_traced(work)
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
    return _Tracer(pid, os.path.realpath(folder), before, after).follow()


class _Tracer:
    def __init__(self, pid: int, folder: str, before: Before, after: After) -> None:
        self._pid = pid
        self._folder = folder
        self._before = before
        self._after = after
        self._count = 0
        self._inside: dict[int, Call] = {}
        self._failing: dict[int, int] = {}
        self._info = _Info()

    def follow(self) -> int:
        _ptrace(_SYSCALL, self._pid, 0, 0)
        while True:
            tid, status = os.waitpid(-1, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if tid == self._pid:
                    return os.waitstatus_to_exitcode(status)
                continue
            number = os.WSTOPSIG(status)
            if number == _STOPPED_AT_CALL:
                if self._stop(tid) is Fate.KILL:
                    os.kill(self._pid, signal.SIGKILL)
                    continue
                number = 0
            elif number == signal.SIGTRAP or (status >> 16) or number == signal.SIGSTOP:
                number = 0  # news of a thread, not a signal for it
            _resume(tid, number)

    def _stop(self, tid: int) -> Fate:
        info = self._info
        try:
            _ptrace(_GET_SYSCALL_INFO, tid, ctypes.sizeof(info), ctypes.addressof(info))
        except ProcessLookupError:
            return Fate.GO_ON  # killed meanwhile
        if info.op == _INFO_EXIT:
            return self._leave(tid)
        name = _BY_NUMBER.get(info.nr) if info.op == _INFO_ENTRY else None
        call = self._read(tid, name) if name else None
        if call is None:
            return Fate.GO_ON
        self._count += 1
        fate = self._before(call)
        if isinstance(fate, Fate):
            self._inside[tid] = call
            return fate
        self._failing[tid] = fate
        _ptrace(_POKEUSER, tid, _ORIG_RAX, ctypes.c_uint64(-1).value)
        return Fate.GO_ON

    def _leave(self, tid: int) -> Fate:
        error = self._failing.pop(tid, 0)
        if error:
            _ptrace(_POKEUSER, tid, _RAX, ctypes.c_uint64(-error).value)
        call = self._inside.pop(tid, None)
        if call:
            self._after(call)
        return Fate.GO_ON

    def _read(self, tid: int, name: str) -> Call | None:
        _, _, descriptor, path_arguments = _CALLS[name]
        arguments = self._info.args
        if name in _FLAGS_ARGUMENT:
            flags = arguments[_FLAGS_ARGUMENT[name]]
            if not flags & (os.O_CREAT | os.O_TRUNC):
                return None
        if descriptor is not None:
            paths = [self._path_of(tid, ctypes.c_int32(arguments[descriptor]).value)]
        else:
            paths = [_text_at(tid, arguments[index]) for index in path_arguments]
        below = [self._below(path) for path in paths]
        if all(path is None for path in below):
            return None
        first, last = below[0] or paths[0], below[-1] or paths[-1]
        plain = name.removesuffix("2").removesuffix("at")
        return Call(self._count, plain, first, last)

    def _path_of(self, tid: int, descriptor: int) -> str:
        try:
            return str(Path(f"/proc/{tid}/fd/{descriptor}").readlink())
        except OSError:
            return ""

    def _below(self, path: str) -> str | None:
        if path == self._folder:
            return "."
        inside = path.startswith(self._folder + "/")
        return path[len(self._folder) + 1 :] if inside else None


def _be_traced(work: Callable[[], None]) -> None:
    """Run the child's side; never returns."""
    code = 1
    try:
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _text_at(tid: int, address: int) -> str:
    with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            here = address + len(text)
            try:
                # Not across a page's end: the next one may not be there.
                text += os.pread(memory.fileno(), min(256, 4096 - here % 4096), here)
            except OSError:
                break
    return os.fsdecode(text.split(b"\0", 1)[0])


def _resume(tid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # killed meanwhile; waitpid will say so
        _ptrace(_SYSCALL, tid, 0, number)


def _ptrace(request: int, pid: int, address: int, data: int) -> int:
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, pid, address, data)
    number = ctypes.get_errno()
    if result < 0 and number:
        if number == errno.ESRCH:
            raise ProcessLookupError(number, os.strerror(number))
        raise OSError(number, f"ptrace request {request:#x}: {os.strerror(number)}")
    return result
