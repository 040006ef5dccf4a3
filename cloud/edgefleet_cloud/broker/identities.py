"""The certificates with which the hub itself connects to a broker.

All bear the name `hub`. What tells them apart, for a broker that knows a client by the subject of
its certificate, is the subject's serial number: the part that connects with it, and a mark that
this hub has made for itself once. So a certificate with the hub's name that came about in any
other way is nobody, and a renewed one is the same client as before.
"""

import secrets
from pathlib import Path

from edgefleet_cloud.broker import policy
from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair

_MARK_BYTES = 16


def link(authority: Authority, folder: Path) -> KeyPair:
    """Return the certificate of the link, which carries what devices and hub say."""
    return authority.issue_client(policy.HUB, folder, mark=link_mark(folder))


def control(authority: Authority, folder: Path) -> KeyPair:
    """Return the certificate of the connection that administers an external broker."""
    return authority.issue_client(policy.HUB, folder, file="control", mark=control_mark(folder))


def watch(authority: Authority, folder: Path) -> KeyPair:
    """Return the certificate of the self-test's observer."""
    return authority.issue_client(policy.HUB, folder, file="watch", mark=watch_mark(folder))


def link_mark(folder: Path) -> str:
    """Return the serial number in the subject of the link's certificate."""
    return f"link-{_mark(folder)}"


def control_mark(folder: Path) -> str:
    """Return the same of the control connection's."""
    return f"control-{_mark(folder)}"


def watch_mark(folder: Path) -> str:
    """Return the same of the observer's."""
    return f"watch-{_mark(folder)}"


def _mark(folder: Path) -> str:
    """Return this hub's mark, made at first use."""
    path = folder / "mark"
    if not path.exists():
        durable.write(path, secrets.token_hex(_MARK_BYTES).encode(), mode=durable.PRIVATE)
    mark = path.read_text(encoding="ascii").strip()
    if len(mark) != 2 * _MARK_BYTES or not mark.isalnum():
        raise DamagedError(
            f"{path} holds no mark of {2 * _MARK_BYTES} letters and digits; remove it for a new"
            " one, and write the configuration of an external broker anew"
        )
    return mark
