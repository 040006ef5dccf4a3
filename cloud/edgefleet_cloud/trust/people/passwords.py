"""Passwords: which are taken, and how they are kept (NIST SP 800-63B, section 3.1.1).

Rules:

1. At least 12 characters, any characters; no rules about digits or capitals, no forced change.
2. Not the account's own name, not one of the common ones, not a few characters over and over.
3. Kept as Argon2id with a salt (RFC 9106, second recommended option: 64 MiB). Each hash costs that
   memory, so only two are made at a time.
4. Checking an account without a password costs as much as checking one with: how long a refusal
   takes does not say which accounts there are.
"""

import functools
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from edgefleet_cloud.errors import InvalidError

MIN_LENGTH = 12
MAX_LENGTH = 256
MIN_DIFFERENT = 5
# The ones of 12 characters or more that stand high in published lists of leaked passwords.
COMMON = frozenset(
    """
    123456789012 1234567890123 12345678901234 123456789123 1234567890123456 123123123123
    123qweasdzxc 1q2w3e4r5t6y 1qaz2wsx3edc 1qazxsw23edc q1w2e3r4t5y6 qwerty123456 qwertyuiop12
    qwertyuiop123 qwertyuiopasdf qwertyuiop[] asdfghjkl123 abcdefghijkl abc123abc123 abcd12345678
    password1234 password12345 password123456 passwordpassword passw0rd1234 p@ssword1234
    p@ssw0rd1234 administrator admin1234567 admin123456789 iloveyou1234 iloveyouforever
    letmeinletmein welcome12345 welcome123456 changemenow1 changemechangeme
    edgefleetedgefleet edgefleet123 edgefleet1234 defaultpassword superman1234 princess1234
    football1234 trustno1trustno1 monkeymonkey1 secretsecret1 testtesttest1 test12345678
    """.split()  # noqa: SIM905  # fifty quoted words are harder to read
)
_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
_slots = threading.Semaphore(2)


def check(password: str, account: str) -> None:
    """Refuse a password that is too easy to guess.

    Raises:
        InvalidError: saying what it lacks, never what it is.
    """
    text = _normal(password)
    if len(text) < MIN_LENGTH:
        raise InvalidError(f"a password has at least {MIN_LENGTH} characters; this has {len(text)}")
    if len(text) > MAX_LENGTH:
        raise InvalidError(f"a password has at most {MAX_LENGTH} characters")
    folded = text.casefold()
    if account.casefold() in folded and len(account) * 2 >= len(folded):
        raise InvalidError("the password is little more than the account's name")
    if folded in COMMON or len(set(folded)) < MIN_DIFFERENT:
        raise InvalidError("this password is among the first that are guessed; take another")


@functools.cache
def _nobody() -> str:
    """Return the hash of a password that nobody has, made where it is first needed."""
    return _hasher.hash(secrets.token_bytes(32))


def hashed(password: str) -> str:
    """Return what is kept of a password."""
    with _slots:
        return _hasher.hash(_normal(password))


def matches(password: str, kept: str | None) -> bool:
    """Return whether this is the password; False, as slowly, where there is none."""
    with _slots:
        try:
            right = _hasher.verify(kept or _nobody(), _normal(password[: MAX_LENGTH + 1]))
        except VerificationError:
            return False
    return right and kept is not None


def _normal(password: str) -> str:
    # The same keys give other code points on other systems.
    return unicodedata.normalize("NFKC", password)
