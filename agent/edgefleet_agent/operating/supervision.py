"""Telling systemd how this process is, and telling it nothing once the engine hangs.

The protocol is one datagram a message to the socket that `NOTIFY_SOCKET` names (sd_notify(3)), so
no library is needed. Rules:

1. `READY=1` is told when what is on disk serves, `STOPPING=1` when the end begins.
2. `WATCHDOG=1` is told only while the engine turns and the link's thread lives. A process that
   cannot do its work is killed and started again; the crash-loop rules of `update` see to the rest.
3. Telling never fails the agent: a supervisor that is gone is logged once.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

# A turn of the engine waits for news for 5 s at most; the rest is for a slow disk. Hashing, trials
# and loading run beside it.
TURN_LIMIT_S = 60.0


class Supervisor:
    """The way to systemd; without one around, nothing is told to nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Look for a supervisor.

        Args:
            environment: `NOTIFY_SOCKET` is its address (`@` begins an abstract name),
                `WATCHDOG_USEC` the longest silence, `WATCHDOG_PID` whose silence is meant.
        """
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment) if self._address else None
        self._complained = False

    def tell(self, *assignments: str) -> None:
        """Send `NAME=value` lines, as one message."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
                # A supervisor that does not read must not hold up whoever tells it something.
                way.settimeout(1.0)
                way.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            if not self._complained:
                log.warning("supervisor %s cannot be told anything: %s", self._address, error)
            self._complained = True

    def ready(self, status: str) -> None:
        """Say that the agent serves."""
        self.tell("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self.tell("STOPPING=1", "STATUS=stopping")


class Watchdog:
    """Feeds the supervisor's watchdog for as long as the agent works."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        link_alive: Callable[[], bool],
        status: Callable[[], str],
        turn_limit_s: float = TURN_LIMIT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            supervisor: to tell.
            link_alive: whether the link's thread lives.
            status: one line for `systemctl status`.
            turn_limit_s: longest time between two turns of the engine.
            monotonic: seconds that never go back.
        """
        self._supervisor = supervisor
        self._link_alive = link_alive
        self._status = status
        self._turn_limit_s = turn_limit_s
        self._monotonic = monotonic
        self._turned_at = monotonic()
        self._silent = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self) -> None:
        """Hear that the engine begins another turn. Called by the engine's thread."""
        self._turned_at = self._monotonic()

    def start(self) -> None:
        """Begin to tell, if the supervisor wants to be told."""
        if self._supervisor.watchdog_s is None:
            return
        # systemd's advice is half the time; a third leaves room for one that is late.
        every_s = self._supervisor.watchdog_s / 3.0
        self._turned_at = self._monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(every_s,), name="watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Tell nothing any more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def complaint(self) -> str:
        """Say what does not work, empty if all does."""
        still_s = self._monotonic() - self._turned_at
        if still_s > self._turn_limit_s:
            return f"the engine has not turned for {still_s:.0f} s"
        if not self._link_alive():
            return "the thread of the link has ended"
        return ""

    def look(self) -> None:
        """Tell the supervisor that all is well, or log once what is not."""
        complaint = self.complaint()
        if not complaint:
            self._silent = False
            self._supervisor.tell("WATCHDOG=1", f"STATUS={self._status()}")
        elif not self._silent:
            self._silent = True
            self._supervisor.tell(f"STATUS={complaint}")
            log.critical("%s; the supervisor will end and restart this process", complaint)
            # Where it hangs is gone with the process.
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)

    def _run(self, every_s: float) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(every_s)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return the longest silence that the supervisor allows this process, None for any."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) else None
