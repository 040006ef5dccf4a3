"""Rollouts that people had to approve first: they start by themselves once enough have said yes."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Approval, ApprovalState
from edgefleet_cloud.errors import HubError
from edgefleet_cloud.rollouts import service
from edgefleet_cloud.trust.audit.log import record

MAX_OUTCOME_LENGTH = 500


def start(session: Session, now: float) -> None:
    """Start the rollouts whose approval has come in.

    One that cannot start any more (its devices are gone, its version was retired) is given up; the
    approval says why.

    Args:
        session: in a write transaction.
        now: Unix seconds.
    """
    due = select(Approval).where(
        Approval.state == ApprovalState.APPROVED,
        Approval.rollout_id.is_(None),
        Approval.outcome == "",
    )
    for asked in session.scalars(due).all():
        if asked.then is None:
            continue
        try:
            with session.begin_nested():
                rollout = service.create(session, now=now, **asked.then)
        except HubError as error:
            asked.outcome = f"no rollout: {error}"[:MAX_OUTCOME_LENGTH]
            record(session, "approval.fail", str(asked.id), now, reason=asked.outcome)
        else:
            asked.rollout_id = rollout.id
            asked.outcome = f"rollout {rollout.id}"
    session.flush()
