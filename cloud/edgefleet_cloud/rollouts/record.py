"""The history of a rollout: what happened when, for people and for reports.

What was decided, by a person or by the gate, also goes into the log of decisions.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy.orm import object_session
from sqlalchemy.orm.attributes import get_history

from edgefleet_cloud.database.models import Rollout
from edgefleet_cloud.rollouts.gate import StageStatistics
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.values import Json

# More than this would only repeat what the table of devices says.
MAX_NAMED = 100
# Events that are decisions, and their actions in the log. A failed device is a report.
_DECISIONS = {
    "created": "rollout.create",
    "stage_started": "rollout.start_stage",
    "stage_passed": "rollout.pass_stage",
    "paused": "rollout.pause",
    "resumed": "rollout.resume",
    "cancelled": "rollout.cancel",
    "superseded": "rollout.supersede",
    "rolling_back": "rollout.roll_back",
    "rolled_back": "rollout.end_rollback",
    "completed": "rollout.complete",
}


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
    if event in _DECISIONS:
        _audit(rollout, now, _DECISIONS[event], entry)
    # A new list: a change inside a JSON value would not be written.
    rollout.history = [*rollout.history, entry]


def _audit(rollout: Rollout, now: float, action: str, entry: Json) -> None:
    session = object_session(rollout)
    assert session is not None, "a rollout's history is written in the session that holds it"
    after = {
        name: getattr(rollout, name)
        for name in ("model", "release", "previous", "strategy", "state", "stage", "gate", "order")
    }
    # What this transaction has changed and not yet written.
    changed = {name: get_history(rollout, name).deleted for name in after}
    before = {name: values[0] for name, values in changed.items() if values}
    audit.record(
        session,
        action,
        str(rollout.id),
        now,
        before=before or None,
        after=after | {name: entry[name] for name in ("devices", "statistics") if name in entry},
        reason=entry["text"],
    )
