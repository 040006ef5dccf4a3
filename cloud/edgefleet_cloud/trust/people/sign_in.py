"""Signing in with name and password."""

import logging
from dataclasses import dataclass

from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import LimitedError, UnknownCallerError
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.acting import Actor
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import lockout, passwords, tokens
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.throttle import Subject, Throttle

logger = logging.getLogger(__name__)
MAX_TYPED_LENGTH = 300


@dataclass(frozen=True)
class Gate:
    """Where sign-ins come in.

    Attributes:
        throttle: counts failures by address; failures by name are in the database.
    """

    database: Database
    throttle: Throttle

    def with_password(self, name: str, password: str, address: str, now: float) -> Caller:
        """Return who this is.

        Args:
            name: as typed.
            password: as typed.
            address: that the request comes from.
            now: Unix seconds.

        Raises:
            LimitedError: if the address or the name has failed too often.
            UnknownCallerError: if name and password do not belong together. Nothing says whether
                there is such an account.
        """
        wait_s: float = self.throttle.wait_s(Subject.PASSWORD, address)
        if wait_s:
            raise LimitedError("too many failed sign-ins from this address", wait_s)
        name, password = name[:MAX_TYPED_LENGTH], password[:MAX_TYPED_LENGTH]
        with self.database.write() as session:
            wait_s = lockout.attempt(session, name, now)
        if wait_s:
            raise LimitedError("too many failed sign-ins under this name", wait_s)
        with self.database.read() as session:
            account = session.get(Account, name)
        # A slow hash; no transaction waits for it.
        right = passwords.matches(password, account.password if account else None)
        with self.database.write() as session:
            account = session.get(Account, name)
            if not right or account is None or account.disabled_at is not None:
                _note_failure(session, account, name, address, now)
                caller = None
            else:
                lockout.forget(session, name)
                caller = tokens.caller_of(session, name)
        if caller is None:
            self.throttle.failed(Subject.PASSWORD, address)
            raise UnknownCallerError("name and password do not belong together")
        return caller


def _note_failure(
    session: Session, account: Account | None, name: str, address: str, now: float
) -> None:
    if account is None:
        # What was typed may be a password: it goes nowhere. A write all the same, so that this
        # takes as long as for an account that there is.
        lockout.touch(session, name, now)
        logger.warning("a sign-in from %s failed: no such account", address)
        return
    reason = "disabled" if account.disabled_at is not None else "wrong password"
    logger.warning("a sign-in to %s from %s failed: %s", account.name, address, reason)
    with acting.acting(Actor("unknown", "person")):
        record(session, "login.fail", account.name, now, after={"address": address}, reason=reason)
