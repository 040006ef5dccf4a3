"""Approval by two people: nothing of a high-risk model is released on one person's word.

Rules:

1. A version of a high-risk model is released, rolled out or run as a challenger only with an
   approval of exactly its content: the question names a digest over all its manifests.
2. Two different people have to say yes. Services and shared credentials have no voice, nor has
   whoever made it: who started the run or wrote the trigger behind it, and who asked.
3. One no ends the question. Asking again begins with no voice.
4. A voice counts while its account may approve; it is looked at again when the last one comes in.
5. A model becomes high-risk by one decision and standard only by an approval like the others.
6. Going back to what devices ran before needs no approval: taking a bad release away must not wait.
"""

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Account,
    AccountKind,
    Approval,
    ApprovalState,
    Model,
    Retraining,
    Run,
    Trigger,
    Variant,
    Version,
    Voice,
)
from edgefleet_cloud.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import tokens
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.values import Json
from edgefleet_protocol.identifiers import digest_of

NEEDED = 2
STANDARD, HIGH = "standard", "high"
RELEASE, LOWER_RISK = "release", "lower-risk"
MAX_REASON_LENGTH = 500


class AwaitsApprovalError(ConflictError):
    """The version waits for people."""


def digest_of_version(session: Session, version: Version) -> str:
    """Return the digest that stands for exactly this version: SHA-256 of its manifests' digests.

    The text under it is JSON with sorted keys and without blanks:
    {"manifests": {variant: digest}, "model": …, "reference": digest, "version": …}.
    """
    rows = session.scalars(select(Variant).where(Variant.version_id == version.id))
    manifests = {row.name: row.manifest for row in rows if row.state == "verified"}
    return _digest(
        model=version.model,
        version=version.version,
        reference=version.reference,
        manifests=manifests,
    )


def require(session: Session, version: Version) -> None:
    """Refuse to go on with a version of a high-risk model that people have not approved.

    Raises:
        AwaitsApprovalError: saying which question waits, or how to ask.
    """
    if session.get_one(Model, version.model).risk != HIGH:
        return
    asked = of_version(session, version)
    if asked is not None and asked.state == ApprovalState.APPROVED:
        return
    what = f"{version.model} is of high risk, and version {version.version}"
    if asked is None or asked.state != ApprovalState.WAITING:
        raise AwaitsApprovalError(
            f"{what} is not approved by {NEEDED} people; ask them with `edgefleet approvals ask"
            f" {version.model} {version.version}`"
        )
    said = sum(voice.yes for voice in voices(session, asked))
    raise AwaitsApprovalError(f"{what} waits for approval {asked.id}: {said} of {NEEDED} said yes")


def ask(
    session: Session, version: Version, now: float, *, reason: str = "", then: Json | None = None
) -> Approval | None:
    """Ask people about a version, unless they are asked or have approved it already.

    Args:
        session: in a write transaction.
        version: of any model.
        now: Unix seconds.
        reason: for whoever decides.
        then: arguments of the rollout to start once it is approved (`rollouts.awaited`).

    Returns:
        The question that waits; None if nobody has to be asked, for the model is of standard risk
        or this version is approved.
    """
    if session.get_one(Model, version.model).risk != HIGH:
        return None
    digest = digest_of_version(session, version)
    asked = _newest(session, RELEASE, version.model, digest)
    if asked is not None and asked.state == ApprovalState.APPROVED:
        return None
    if asked is None or asked.state != ApprovalState.WAITING:
        makers = _makers(session, version)
        asked = _open(session, RELEASE, version.model, version.version, digest, makers, reason, now)
    if then is not None:
        asked.then = then
        session.flush()
    return asked


def set_risk(session: Session, model: str, risk: str, reason: str, now: float) -> Approval | None:
    """Say how risky a model is: high at once, standard once two people agree.

    Returns:
        The question that waits, None if the risk is what was asked for.

    Raises:
        NotFoundError: no such model.
        InvalidError: no such risk.
    """
    row = session.get(Model, model)
    if row is None:
        raise NotFoundError("model", model)
    if risk not in (STANDARD, HIGH):
        raise InvalidError(f"risk {risk[:80]!r}: expected {STANDARD} or {HIGH}")
    if risk == HIGH:
        # A question about lowering it is answered by this.
        _supersede(session, LOWER_RISK, model, now)
    if row.risk == risk:
        return None
    if risk == HIGH:
        _change_risk(session, row, risk, reason, now)
        return None
    digest = _digest(model=model, risk=risk)
    asked = _newest(session, LOWER_RISK, model, digest)
    if asked is not None and asked.state == ApprovalState.WAITING:
        return asked
    return _open(session, LOWER_RISK, model, "", digest, set(), reason, now)


def speak(
    session: Session,
    approval_id: int,
    caller: Caller,
    *,
    yes: bool,
    digest: str,
    reason: str,
    now: float,
) -> Approval:
    """Say yes or no to a question.

    Args:
        session: in a write transaction.
        approval_id: of the question.
        caller: who speaks; may approve for the model.
        yes: the answer.
        digest: of what the person looked at; has to be the question's.
        reason: why.
        now: Unix seconds.

    Raises:
        NotFoundError: no such question.
        ConflictError: it is answered, is about something else now, or this person has spoken.
        DeniedError: the caller has no voice here.
    """
    asked = get(session, approval_id)
    _check_voice(asked, caller)
    if asked.state != ApprovalState.WAITING:
        raise ConflictError(f"approval {asked.id} is {asked.state}; ask anew if need be")
    if digest != asked.digest or digest != _present_digest(session, asked):
        raise ConflictError(
            f"approval {asked.id} is about {asked.digest[:16]}…, not {digest[:16]}…; look again"
        )
    if session.get(Voice, (asked.id, caller.name)) is not None:
        raise ConflictError(f"{caller.name} has spoken on approval {asked.id} already")
    reason = reason[:MAX_REASON_LENGTH]
    session.add(Voice(approval_id=asked.id, account=caller.name, yes=yes, reason=reason, at=now))
    session.flush()
    action = "approval.approve" if yes else "approval.refuse"
    after = {"model": asked.model, "version": asked.version, "digest": digest}
    record(session, action, str(asked.id), now, after=after, reason=reason)
    if not yes:
        _end(session, asked, ApprovalState.REFUSED, now)
    elif sum(_counts(session, voice) for voice in voices(session, asked)) >= NEEDED:
        _end(session, asked, ApprovalState.APPROVED, now)
        if asked.kind == LOWER_RISK:
            model = session.get_one(Model, asked.model)
            _change_risk(session, model, STANDARD, f"approval {asked.id}", now)
    return asked


def of_version(session: Session, version: Version) -> Approval | None:
    """Return the newest question about exactly this version."""
    return _newest(session, RELEASE, version.model, digest_of_version(session, version))


def get(session: Session, approval_id: int) -> Approval:
    """Return one question.

    Raises:
        NotFoundError: if there is none with this number.
    """
    asked = session.get(Approval, approval_id)
    if asked is None:
        raise NotFoundError("approval", approval_id)
    return asked


def listing(
    session: Session, *, state: str | None = None, model: str | None = None, limit: int = 100
) -> list[Approval]:
    """Return questions, newest first."""
    query = select(Approval).order_by(Approval.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Approval.state == state)
    if model is not None:
        query = query.where(Approval.model == model)
    return list(session.scalars(query))


def voices(session: Session, asked: Approval) -> list[Voice]:
    """Return what was said to a question, oldest first."""
    query = select(Voice).where(Voice.approval_id == asked.id).order_by(Voice.at, Voice.account)
    return list(session.scalars(query))


def has_voice(session: Session, asked: Approval, caller: Caller) -> bool:
    """Return whether this caller may still speak on a question."""
    try:
        _check_voice(asked, caller)
    except DeniedError:
        return False
    spoken = session.get(Voice, (asked.id, caller.name)) is not None
    return asked.state == ApprovalState.WAITING and not spoken


def view(session: Session, asked: Approval) -> Json:
    """Return a question as the API shows it."""
    fields = ("id", "kind", "model", "version", "digest", "asked_by", "makers", "reason", "state",
              "rollout_id", "outcome", "created_at", "decided_at")  # fmt: skip
    said = [
        {"account": voice.account, "yes": voice.yes, "reason": voice.reason, "at": voice.at}
        for voice in voices(session, asked)
    ]
    return {**{name: getattr(asked, name) for name in fields}, "voices": said, "needed": NEEDED}


def _open(
    session: Session,
    kind: str,
    model: str,
    version: str,
    digest: str,
    makers: set[str],
    reason: str,
    now: float,
) -> Approval:
    _supersede(session, kind, model, now, version)
    actor = acting.now()
    asked = Approval(
        kind=kind,
        model=model,
        version=version,
        digest=digest,
        asked_by=actor.name,
        makers=sorted((makers | {actor.name}) - {acting.HUB.name}),
        reason=reason[:MAX_REASON_LENGTH],
        state=ApprovalState.WAITING,
        created_at=now,
    )
    session.add(asked)
    session.flush()
    after = {"kind": kind, "model": model, "version": version, "digest": digest}
    record(session, "approval.ask", str(asked.id), now, after=after, reason=reason)
    return asked


def _makers(session: Session, version: Version) -> set[str]:
    makers = {session.get_one(Run, version.run_id).started_by}
    triggers = (
        select(Trigger.made_by)
        .join(Retraining, Retraining.trigger_id == Trigger.id)
        .where(Retraining.model == version.model, Retraining.version == version.version)
    )
    return makers | set(session.scalars(triggers))


def _check_voice(asked: Approval, caller: Caller) -> None:
    if caller.kind != AccountKind.PERSON:
        raise DeniedError(f"{caller.name} is a service; only people approve")
    if caller.name in asked.makers:
        raise DeniedError(f"{caller.name} made or asked for this; two others have to approve it")
    if not caller.may(Permission.APPROVE, asked.model):
        raise DeniedError(f"{caller.name} has not the permission to {Permission.APPROVE}")


def _counts(session: Session, voice: Voice) -> bool:
    account = session.get_one(Account, voice.account)
    may = Permission.APPROVE in tokens.caller_of(session, voice.account).permissions
    return voice.yes and account.disabled_at is None and may


def _present_digest(session: Session, asked: Approval) -> str:
    if asked.kind == LOWER_RISK:
        return _digest(model=asked.model, risk=STANDARD)
    version = session.scalar(
        select(Version).where(Version.model == asked.model, Version.version == asked.version)
    )
    return "" if version is None else digest_of_version(session, version)


def _newest(session: Session, kind: str, model: str, digest: str) -> Approval | None:
    return session.scalar(
        select(Approval)
        .where(Approval.kind == kind, Approval.model == model, Approval.digest == digest)
        .order_by(Approval.id.desc())
        .limit(1)
    )


def _supersede(session: Session, kind: str, model: str, now: float, version: str = "") -> None:
    for other in listing(session, state=ApprovalState.WAITING, model=model):
        if other.kind == kind and other.version == version:
            _end(session, other, ApprovalState.SUPERSEDED, now)


def _end(session: Session, asked: Approval, state: ApprovalState, now: float) -> None:
    asked.state, asked.decided_at = state, now
    session.flush()


def _change_risk(session: Session, model: Model, risk: str, reason: str, now: float) -> None:
    before, model.risk = model.risk, risk
    session.flush()
    said = {"before": {"risk": before}, "after": {"risk": risk}}
    record(session, "model.risk", model.name, now, **said, reason=reason)


def _digest(**fields: object) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_of(text.encode())
