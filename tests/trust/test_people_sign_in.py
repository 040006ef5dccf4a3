"""Passwords, lock-out, and signing in with a password."""

import time
from pathlib import Path

import pytest

from edgefleet_cloud.database.models import AuditEntry, Lockout
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import InvalidError, LimitedError, UnknownCallerError
from edgefleet_cloud.trust.people import accounts, lockout, passwords
from edgefleet_cloud.trust.people.sign_in import Gate
from edgefleet_cloud.trust.people.testing import NOW, PASSWORD, account
from edgefleet_cloud.trust.people.throttle import Subject, Throttle

# --- which passwords ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "complaint"),
    [
        ("abcdefghijk", "at least 12 characters; this has 11"),
        ("x" * 257, "at most 256"),
        ("aaaaaaaaaaaa", "among the first that are guessed"),
        ("ababababababab", "among the first that are guessed"),
        ("Password1234", "among the first that are guessed"),
        ("EdgeFleet123", "among the first that are guessed"),
        ("ada.lovelace", "little more than the account's name"),
        ("1ada.lovelace!", "little more than the account's name"),
    ],
)
def test_a_password_that_is_easy_to_guess_is_refused(password: str, complaint: str) -> None:
    with pytest.raises(InvalidError, match=complaint) as refused:
        passwords.check(password, "ada.lovelace")
    assert password not in str(refused.value)


@pytest.mark.parametrize(
    "password", ["abcdefgh1234", "only small letters", "ß" * 8 + "äöü€", PASSWORD]
)
def test_twelve_characters_of_any_kind_are_enough(password: str) -> None:
    passwords.check(password, "ada")


def test_a_password_is_kept_as_argon2id_with_a_salt_of_its_own() -> None:
    first, second = passwords.hashed(PASSWORD), passwords.hashed(PASSWORD)
    assert first != second
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert passwords.matches(PASSWORD, first)
    assert not passwords.matches(PASSWORD + " ", first)
    assert not passwords.matches(PASSWORD, None)


def test_the_same_characters_typed_on_another_system_match() -> None:
    composed, decomposed = "caf\u00e9 au lait 12", "cafe\u0301 au lait 12"
    assert passwords.matches(decomposed, passwords.hashed(composed))


def test_a_refusal_takes_as_long_where_there_is_no_password() -> None:
    kept = passwords.hashed(PASSWORD)
    passwords.matches("warm", None)

    def took(kept: str | None) -> float:
        began = time.process_time()
        for _ in range(3):
            passwords.matches("wrong password", kept)
        return time.process_time() - began

    assert took(None) == pytest.approx(took(kept), rel=0.7)


# --- lock-out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "wait_s"),
    [(0, 0), (4, 0), (5, 30), (6, 60), (7, 120), (9, 480), (10, 900), (999, 900)],
)
def test_the_wait_doubles_from_the_fifth_failure_on(failures: int, wait_s: float) -> None:
    assert lockout.wait_after(failures) == wait_s


def tries(database: Database, name: str, count: int, now: float = NOW) -> list[float]:
    waits = []
    for _ in range(count):
        with database.write() as session:
            waits.append(lockout.attempt(session, name, now))
    return waits


def test_the_sixth_try_waits_and_the_wait_ends_on_time(database: Database) -> None:
    assert tries(database, "ada", 6) == [0, 0, 0, 0, 0, 30]
    assert tries(database, "ada", 1, NOW + 29.5) == [0.5]
    assert tries(database, "ada", 2, NOW + 30) == [0, 60]


def test_a_lock_outlasts_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hub.db'}"
    database = Database(url)
    tries(database, "ada", 5)
    database.close()
    again = Database(url)
    assert tries(again, "ada", 1) == [30]
    again.close()


def test_a_day_without_a_failure_forgets_them(database: Database) -> None:
    tries(database, "ada", 5)
    assert tries(database, "ada", 1, NOW + lockout.FORGET_S - 1) == [0]
    with database.read() as session:
        assert session.query(Lockout).one().failures == 6
    assert tries(database, "bob", 1, NOW + 2 * lockout.FORGET_S) == [0]
    with database.read() as session:
        assert session.query(Lockout).one().failures == 1  # bob's; ada's row is gone


def test_names_that_differ_in_case_are_one(database: Database) -> None:
    tries(database, "ada", 5)
    assert tries(database, "ADA", 1) == [30]


# --- signing in -----------------------------------------------------------------------------------


@pytest.fixture
def gate(database: Database) -> Gate:
    account(database, "ada", "viewer", password=PASSWORD)
    return Gate(database, Throttle())


def refusal(
    gate: Gate, name: str, password: str, address: str = "10.0.0.1", now: float = NOW
) -> str:
    with pytest.raises((UnknownCallerError, LimitedError)) as refused:
        gate.with_password(name, password, address, now)
    return str(refused.value)


def test_the_right_password_signs_in(gate: Gate) -> None:
    caller = gate.with_password("ada", PASSWORD, "10.0.0.1", NOW)
    assert (caller.name, caller.kind) == ("ada", "person")


def test_what_is_said_does_not_tell_whether_there_is_such_an_account(gate: Gate) -> None:
    account(gate.database, "root", "admin")
    account(gate.database, "gone", password=PASSWORD)
    account(gate.database, "nopassword")
    with gate.database.write() as session:
        accounts.disable(session, "gone", "left", NOW)
    said = {
        refusal(gate, name, password)
        for name, password in (
            ("ada", "wrong password"), ("nobody", "wrong password"),
            ("gone", PASSWORD), ("nopassword", "wrong password"), ("root", "wrong password"),
        )
    }  # fmt: skip
    assert said == {"name and password do not belong together"}


@pytest.mark.parametrize("name", ["ada", "nobody"])
def test_a_name_is_locked_alike_whether_or_not_there_is_an_account(gate: Gate, name: str) -> None:
    for number in range(5):
        assert "belong together" in refusal(gate, name, "wrong password", f"10.0.{number}.1")
    assert refusal(gate, name, PASSWORD, "10.9.9.9") == (
        "too many failed sign-ins under this name; wait 30 s"
    )


def test_the_right_password_after_the_wait_forgets_the_failures(gate: Gate) -> None:
    for number in range(5):
        refusal(gate, "ada", "wrong password", f"10.0.{number}.1")
    gate.with_password("ada", PASSWORD, "10.9.9.9", NOW + 30)
    for number in range(4):
        refusal(gate, "ada", "wrong password", f"10.1.{number}.1", NOW + 31)
    gate.with_password("ada", PASSWORD, "10.9.9.9", NOW + 31)


def test_an_address_that_fails_too_often_waits_and_others_do_not(gate: Gate) -> None:
    for _ in range(10):
        gate.throttle.failed(Subject.PASSWORD, "10.0.0.1")
    assert "from this address" in refusal(gate, "ada", PASSWORD)
    gate.with_password("ada", PASSWORD, "10.0.0.2", NOW)


def test_signing_in_rightly_is_not_limited(gate: Gate) -> None:
    for _ in range(12):
        gate.with_password("ada", PASSWORD, "10.0.0.1", NOW)


def test_a_failure_is_in_the_log_of_decisions_without_what_was_typed(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    refusal(gate, "ada", "my-bank-password-77")
    refusal(gate, "my-bank-password-77", "x")  # typed into the wrong field
    with gate.database.read() as session:
        lines = [row.line for row in session.query(AuditEntry)]
    failed = [line for line in lines if "login.fail" in line]
    assert len(failed) == 1
    assert not any("bank" in line for line in lines)
    assert "bank" not in caplog.text


def test_an_ipv6_network_counts_as_one_address() -> None:
    throttle = Throttle()
    for number in range(10):
        throttle.failed(Subject.PASSWORD, f"2001:db8::{number:x}")
    assert throttle.wait_s(Subject.PASSWORD, "2001:db8::ffff") > 0
    assert throttle.wait_s(Subject.PASSWORD, "2001:db8:0:1::1") == 0
