"""The history of a rollout: what happened when, for people and for reports."""

from collections.abc import Sequence
from typing import Any

import msgspec

from edgefleet_cloud.database.models import Rollout
from edgefleet_cloud.rollouts.gate import StageStatistics

# More than this would only repeat what the table of devices says.
MAX_NAMED = 100


def record(
    rollout: Rollout,
    now: float,
    event: str,
    text: str,
    *,
    devices: Sequence[str] = (),
    statistics: StageStatistics | None = None,
) -> None:
    """Add an entry to a rollout's history.

    Args:
        rollout: whose.
        now: Unix seconds.
        event: created | stage_started | stage_passed | device_failed | paused | resumed |
            cancelled | superseded | rolling_back | rolled_back | completed.
        text: for people.
        devices: concerned; the first hundred are named, all are counted.
        statistics: that the gate looked at.
    """
    entry: dict[str, Any] = {"at": now, "event": event, "stage": rollout.stage, "text": text}
    if devices:
        entry |= {"devices": list(devices[:MAX_NAMED]), "device_count": len(devices)}
    if statistics is not None:
        entry["statistics"] = msgspec.to_builtins(statistics)
        for side in ("stage", "control"):
            entry["statistics"][side]["accuracy"] = getattr(statistics, side).accuracy
    # A new list: a change inside a JSON value would not be written.
    rollout.history = [*rollout.history, entry]
