"""Random secrets and their digests.

A secret of 32 random bytes cannot be guessed, so its plain SHA-256 is enough to find it again
without keeping it; a password is no such secret (see `passwords`).
"""

import secrets

from edgefleet_protocol.identifiers import digest_of

TOKEN_PREFIX = "eft_"  # noqa: S105  # what makes a leaked token easy to search for; no secret


def new_secret() -> str:
    """Return 32 random bytes as text."""
    return secrets.token_urlsafe(32)


def new_token() -> str:
    """Return the secret of a new API token."""
    return TOKEN_PREFIX + new_secret()


def digest(secret: str) -> str:
    """Return what is kept of a secret, and what it is looked up by.

    The lookup compares digests, so how long it takes says nothing about the secret.
    """
    return digest_of(secret.encode())
