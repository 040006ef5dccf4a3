"""The server's socket and its thread: uvicorn in a thread of the agent's process.

Rules:

1. The socket is opened by `start`, so a port in use or a folder that is missing is an error right
   there, before the agent has begun anything.
2. After that the server never takes anything else down: should its thread end by a defect, that is
   logged, and models go on answering in process.
3. A Unix socket is for its owner and group (0660). A socket file that nobody listens on is left
   over from an agent that was killed, and replaced; any other file is not touched.
"""

import asyncio
import errno
import logging
import os
import socket
import stat
import threading
from importlib import util
from typing import Literal

from edgefleet_agent.config import Server
from edgefleet_agent.errors import ServerError
from edgefleet_agent.server.address import Address, Tcp, Unix, parse
from edgefleet_agent.server.application import Application, Models
from edgefleet_agent.server.workers import Workers

log = logging.getLogger(__name__)

# Calls of models at one time. Runtimes release Python's lock, so a second core is used.
WORKERS = 4
# Open connections, as a bound on memory; beyond it uvicorn says 503.
MAX_CONNECTIONS = 256
BACKLOG = 128
# Idle time of a connection: sensors that ask once a second keep theirs.
KEEP_ALIVE_S = 75
DRAIN_S = 5
STOP_TIMEOUT_S = 10.0
_SOCKET_MODE = 0o660


class InferenceServer:
    """The server of one agent. `start` once, `stop` once.

    Args:
        config: where it listens.
        models: that answer.

    Attributes:
        address: where it listens; once started, with the port that the system chose.
    """

    def __init__(self, config: Server, models: Models) -> None:
        """Look whether there can be a server.

        Raises:
            ServerError: if the extra `server` is not installed.
        """
        if util.find_spec("uvicorn") is None:
            raise ServerError(
                f"server.listen is {config.listen!r}, but the server is not installed:"
                " pip install 'edgefleet-agent[server]', or leave server.listen empty"
            )
        self._config = config
        self._models = models
        self.address: Address = parse(config.listen)
        self._socket: socket.socket | None = None
        self._inode = 0
        self._workers: Workers | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            ServerError: if it cannot listen there.
        """
        # Imported here: only an agent with a server pays for it.
        import uvicorn

        self._socket = _listening(self.address)
        if isinstance(self.address, Tcp):
            self.address = Tcp(*self._socket.getsockname()[:2])
        else:
            self._inode = self.address.path.stat().st_ino
        self._workers = Workers(WORKERS)
        application = Application(
            self._models,
            self._workers,
            max_request_bytes=self._config.max_request_bytes,
            any_host=isinstance(self.address, Unix),
        )
        settings = uvicorn.Config(
            application,
            loop="asyncio",
            http=_http_protocol(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        log.info("inference server listens on %s", self.address)

    def stop(self) -> None:
        """Finish the requests that are being answered and let go of the address."""
        if self._thread is None or self._workers is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)
        self._workers.stop()

    def _run(self) -> None:
        assert self._socket is not None
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            # The rest of the agent goes on; applications in its process are not affected.
            log.exception("the inference server has ended by a defect")
        finally:
            self._socket.close()
            self._remove_socket_file()

    def _remove_socket_file(self) -> None:
        if not isinstance(self.address, Unix):
            return
        try:
            # Only if it is ours still: another server may have taken the place.
            if self.address.path.stat().st_ino == self._inode:
                self.address.path.unlink()
        except OSError as error:
            log.warning("socket %s is left behind: %s", self.address.path, error)


def _http_protocol() -> "type[asyncio.Protocol] | Literal['h11']":
    """Return the faster of the HTTP parsers that are installed; h11 comes with uvicorn."""
    if util.find_spec("httptools") is None:
        return "h11"
    from edgefleet_agent.server.bounded import BoundedHttp

    return BoundedHttp


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ServerError: if that is not possible, with what to do.
    """
    family, protocol = socket.AF_UNIX, 0
    if isinstance(address, Tcp):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        # Named, because asyncio sets TCP_NODELAY only then, and replies wait 40 ms without it.
        protocol = socket.IPPROTO_TCP
    listening = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if isinstance(address, Unix):
            _remove_stale(address)
            listening.bind(str(address.path))
            # Before `listen`, so that nobody connects while the mode is that of the umask.
            address.path.chmod(_SOCKET_MODE)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        advice = {
            errno.EADDRINUSE: "another program listens there",
            errno.ENOENT: "its folder does not exist",
            errno.EACCES: "the agent's user may not listen there",
        }.get(error.errno or 0, "see server.listen in the configuration")
        raise ServerError(
            f"the inference server cannot listen on {address}: {os.strerror(error.errno or 0)};"
            f" {advice}"
        ) from error
    except ServerError:
        listening.close()
        raise
    return listening


def _remove_stale(address: Unix) -> None:
    """Remove a socket file that nobody listens on."""
    try:
        mode = address.path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ServerError(
            f"the inference server cannot listen on {address}: a file that is no socket is there"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(address.path))
        except ConnectionRefusedError:
            address.path.unlink()
        else:
            raise ServerError(
                f"the inference server cannot listen on {address}: another program listens there"
            )
