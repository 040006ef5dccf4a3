"""People and programs: accounts, what they may do, how they prove who they are, how they decide.

A secret (password, token, session, code) is never in a table: passwords as Argon2id hashes, all
other secrets, which are random and long, as SHA-256 digests.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base
from edgefleet_cloud.values import Json


class AccountKind(StrEnum):
    """person: one human being; only they approve. service: a program, or a shared credential."""

    PERSON = "person"
    SERVICE = "service"


class Account(Base):
    """Someone who may ask the hub for something.

    Attributes:
        password: Argon2id hash, None for an account that signs in in another way.
        issuer, subject: who this is at the OpenID Connect provider, None for a local account.
        confirmed_at: when the provider last vouched for the account.
    """

    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    password: Mapped[str | None] = mapped_column(String(200))
    issuer: Mapped[str | None] = mapped_column(String(300))
    subject: Mapped[str | None] = mapped_column(String(255))
    confirmed_at: Mapped[float | None]
    disabled_at: Mapped[float | None]
    created_at: Mapped[float]


class RoleGrant(Base):
    """A role that an account has.

    Attributes:
        model: the only model that it is for; "" for the whole fleet.
        source: `admin`, or `provider` where a group at the OpenID Connect provider gives it.
    """

    __tablename__ = "role_grants"
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    source: Mapped[str] = mapped_column(String(16))


class ApiToken(Base):
    """A secret that stands for its account, or for a part of what the account may do.

    Attributes:
        digest: of the secret.
        permissions: at most these; None for all that the account has.
        model: the only model that it may change, "" for all.
    """

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    permissions: Mapped[list[Any] | None]
    model: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[float]
    expires_at: Mapped[float]
    used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class WebSession(Base):
    """A browser that is signed in.

    Attributes:
        digest: of the cookie's secret.
        seen_at: newest request, to the minute; idle sessions end.
        expires_at: the end, however busy it is.
    """

    __tablename__ = "web_sessions"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name"), index=True)
    created_at: Mapped[float]
    seen_at: Mapped[float]
    expires_at: Mapped[float]


class Lockout(Base):
    """Failed sign-ins in a row under one name, whether or not there is such an account.

    Attributes:
        name_digest: of the name as typed, so that a password typed there is not kept.
    """

    __tablename__ = "lockouts"
    name_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int]
    failed_at: Mapped[float]
    locked_until: Mapped[float]


class ProviderSignIn(Base):
    """A sign-in that the OpenID Connect provider was asked for, and that has not come back.

    Attributes:
        state_digest: of the `state` parameter, which comes back once.
        browser_digest: of the cookie of the browser that began it.
        nonce, verifier: of the ID token and of PKCE.
    """

    __tablename__ = "provider_sign_ins"
    state_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    browser_digest: Mapped[str] = mapped_column(String(64))
    nonce: Mapped[str] = mapped_column(String(64))
    verifier: Mapped[str] = mapped_column(String(128))
    next: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[float]


class TerminalSignIn(Base):
    """A command line that asks to act as the person who types its code on the web page.

    Attributes:
        device_digest: of the secret with which the command line asks how it stands.
        user_code: what the person types.
        origin: where the request came from, for the person to see.
        account: who allowed it; None until then.
    """

    __tablename__ = "terminal_sign_ins"
    device_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_code: Mapped[str] = mapped_column(String(16), unique=True)
    origin: Mapped[str] = mapped_column(String(120))
    state: Mapped[str] = mapped_column(String(16))
    account: Mapped[str | None] = mapped_column(ForeignKey("accounts.name"))
    expires_at: Mapped[float]


class ApprovalState(StrEnum):
    """Where a question stands.

    waiting: for voices. approved: enough said yes. refused: one said no. superseded: asked anew,
    or of a version that is no longer what was asked about.
    """

    WAITING = "waiting"
    APPROVED = "approved"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


class Approval(Base):
    """A question to people: may this version of a high-risk model be released?

    Attributes:
        kind: `release`, or `lower-risk` for the model's own risk.
        version: "" for `lower-risk`.
        digest: of exactly what is asked about (`approvals.digest_of`).
        makers: accounts that had a part in it and so have no voice.
        then: arguments of the rollout that starts once it is approved, None for none.
        rollout_id: of that rollout; outcome: why there is none.
    """

    __tablename__ = "approvals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    version: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    asked_by: Mapped[str] = mapped_column(String(64))
    makers: Mapped[list[Any]]
    reason: Mapped[str] = mapped_column(String(500))
    state: Mapped[str] = mapped_column(String(16), index=True)
    then: Mapped[Json | None]
    rollout_id: Mapped[int | None] = mapped_column(ForeignKey("rollouts.id"))
    outcome: Mapped[str] = mapped_column(String(500), default="")
    created_at: Mapped[float]
    decided_at: Mapped[float | None]


class Voice(Base):
    """What one person said to one question; said once."""

    __tablename__ = "approval_voices"
    approval_id: Mapped[int] = mapped_column(ForeignKey("approvals.id"), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name"), primary_key=True)
    yes: Mapped[bool]
    reason: Mapped[str] = mapped_column(String(500))
    at: Mapped[float]
