"""How much signed metadata a device takes, and how long it waits for it.

The lengths of roles are python-tuf's own defaults, which its repositories keep to as well.
"""

MAX_ROOTS = 256
# Visited on the way to one target: the top-level role, an owner's, and what an owner delegates.
MAX_DELEGATIONS = 16
# Delegated roles that are held at all; a fleet has one for each owner of models.
MAX_ROLES = 128
MAX_ROOT_BYTES = 512_000
MAX_TIMESTAMP_BYTES = 16_384
MAX_SNAPSHOT_BYTES = 2_000_000
MAX_TARGETS_BYTES = 5_000_000
# Of all roles together, as held in the agent.
MAX_TOTAL_BYTES = 16_000_000
# Parts of one publication are seconds apart at most; a hub that restarts needs some more. A set to
# which nothing was added for so long is judged as it is.
SETTLE_S = 60.0
# A set that is still not whole then, whatever was added, is judged as it is.
WHOLE_S = 600.0


def role_bytes(role: str) -> int:
    """Return the most bytes that a role may have.

    Args:
        role: as on its topic: `timestamp`, `root-3`, a delegated role, …
    """
    if role.startswith("root-"):
        return MAX_ROOT_BYTES
    return {"timestamp": MAX_TIMESTAMP_BYTES, "snapshot": MAX_SNAPSHOT_BYTES}.get(
        role, MAX_TARGETS_BYTES
    )


class Patience:
    """How long something is waited for: a stall is bounded, and so is the whole.

    Args:
        stall_s: without any progress.
        whole_s: from the first moment of waiting, whatever the progress.
    """

    def __init__(self, stall_s: float = SETTLE_S, whole_s: float = WHOLE_S) -> None:
        self._stall_s = stall_s
        self._whole_s = whole_s
        self._first: float | None = None
        self._since: float | None = None

    def waits(self, now: float) -> None:
        """Note that it is waited for now."""
        self._first = now if self._first is None else self._first
        self._since = now if self._since is None else self._since

    def progressed(self) -> None:
        """Note that something came: the stall begins anew when it is waited for again."""
        self._since = None

    def ends(self) -> None:
        """Note that it is not waited for any more."""
        self._first = self._since = None

    def stalled(self, now: float) -> bool:
        """Tell whether waiting longer is in vain."""
        return (self._since is not None and now - self._since >= self._stall_s) or self.overdue(now)

    def overdue(self, now: float) -> bool:
        """Tell whether the whole took too long."""
        return self._first is not None and now - self._first >= self._whole_s
