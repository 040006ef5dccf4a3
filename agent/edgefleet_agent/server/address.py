"""Where the server may listen: this machine's loopback, or a Unix socket; never a network.

The protocol knows no users and no keys: whoever reaches the server may ask every model and label
its answers. So other addresses are refused; what must be reached from elsewhere goes through a
proxy that asks for credentials.
"""

import ipaddress
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

# sockaddr_un of Linux holds 108 bytes, the last of them zero.
_MAX_SOCKET_PATH_BYTES = 107
_FORMS = "expected 127.0.0.1:PORT, [::1]:PORT or unix:/absolute/path"


class Tcp(Struct, frozen=True):
    """A port on loopback; 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unix(Struct, frozen=True):
    """A Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = Tcp | Unix


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        ValueError: if it is none, or not one of this machine alone.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or len(str(path).encode()) > _MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"listen = {text!r}: the path of a Unix socket must be absolute and at most"
                f" {_MAX_SOCKET_PATH_BYTES} bytes long"
            )
        return Unix(path)
    host, colon, port_text = text.rpartition(":")
    if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise ValueError(f"listen = {text!r} is no address; {_FORMS}")
    if host == "localhost":
        return Tcp("127.0.0.1", int(port_text))
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"listen = {text!r} names no address of this machine; {_FORMS}") from None
    if (address.version == 6) != (bare != host):
        raise ValueError(f"listen = {text!r} is no address; {_FORMS}")
    if not address.is_loopback:
        raise ValueError(
            f"listen = {text!r} can be reached from other machines, and the protocol asks for no"
            f" password; {_FORMS}, and a proxy with authentication for others"
        )
    return Tcp(str(address), int(port_text))


@lru_cache(maxsize=16)
def is_local_name(host: str) -> bool:
    """Tell whether a Host header or the host of an Origin names this machine.

    A page of another site can make a browser connect to 127.0.0.1, even under a name of its own
    that it lets resolve to it (DNS rebinding); it cannot change what the browser writes here.
    """
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
