"""What an ID token of an OpenID Connect provider has to say before it is believed. Pure.

The checks, in their order (OpenID Connect Core 1.0, section 3.1.3.7):

1. The signature is by a key that the provider publishes, with an asymmetric algorithm: neither
   `none` nor one under which a public key could serve as a shared secret.
2. `iss` is exactly the provider that was asked, so that another provider's token is none of ours.
3. `aud` names this hub; where it names others too, or `azp` is there, `azp` is this hub.
4. `exp` is to come, `iat` neither in the future nor long ago, `nbf` past; clocks may differ by a
   minute.
5. `nonce` is the one of this very sign-in, so that a token cannot be used a second time.
6. `sub` is there: it, and not a name or an address, is who this is.
"""

import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from edgefleet_cloud.errors import UnknownCallerError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
SKEW_S = 60.0
MAX_AGE_S = 600.0
MAX_TOKEN_LENGTH = 32_768
MAX_GROUPS = 500


class UnknownKeyError(UnknownCallerError):
    """The key that signed is not among those known; the provider may have new ones."""


@dataclass(frozen=True)
class Expected:
    """What the token of one sign-in has to fit.

    Attributes:
        client: this hub's id at the provider.
        nonce: of the sign-in.
        name_claim, groups_claim: which claims say what to call them, and their groups.
    """

    issuer: str
    client: str
    nonce: str
    name_claim: str
    groups_claim: str


@dataclass(frozen=True)
class Identity:
    """Who the provider says this is."""

    issuer: str
    subject: str
    name: str
    groups: frozenset[str]


def read(token: str, keys: KeySet, expected: Expected, now: float) -> Identity:
    """Return who an ID token is about.

    Args:
        token: compact serialisation, untrusted.
        keys: of the provider.
        expected: what it has to fit.
        now: Unix seconds.

    Raises:
        UnknownKeyError: if none of `keys` has the token's key id.
        UnknownCallerError: saying which check it fails.
    """
    claims = _claims(token, keys)
    # 2.
    _need(claims.get("iss") == expected.issuer, "is of another issuer")
    # 3.
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    _need(isinstance(named, list) and expected.client in named, "is for another client")
    if "azp" in claims or (isinstance(named, list) and len(named) > 1):
        _need(claims.get("azp") == expected.client, "was issued to another client")
    # 4.
    _need(_time(claims, "exp") > now - SKEW_S, "has expired")
    issued = _time(claims, "iat")
    _need(issued < now + SKEW_S, "is from the future")
    _need(issued > now - MAX_AGE_S, "is old")
    if "nbf" in claims:
        _need(_time(claims, "nbf") < now + SKEW_S, "is not valid yet")
    # 5.
    nonce = claims.get("nonce")
    fits = isinstance(nonce, str) and hmac.compare_digest(nonce.encode(), expected.nonce.encode())
    _need(fits, "is of another sign-in")
    # 6.
    subject = claims.get("sub")
    _need(isinstance(subject, str) and 0 < len(subject) <= 255, "names nobody")
    name = claims.get(expected.name_claim)
    return Identity(
        expected.issuer,
        str(subject),
        name if isinstance(name, str) else "",
        _groups(claims.get(expected.groups_claim)),
    )


def _claims(token: str, keys: KeySet) -> Mapping[str, Any]:
    # 1.
    _need(len(token) <= MAX_TOKEN_LENGTH, "is too long")
    try:
        header = jws.extract_compact(token.encode()).headers()
        _need(header.get("alg") in ALGORITHMS, f"has the algorithm {header.get('alg')!r}")
        key_id = header.get("kid")
        if key_id is not None and key_id not in [key.kid for key in keys]:  # it may be unhashable
            raise UnknownKeyError("the sign-in failed: the ID token is signed by an unknown key")
        signed = jws.deserialize_compact(token.encode(), keys, algorithms=list(ALGORITHMS))
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise UnknownCallerError(f"the sign-in failed: the ID token is not valid: {error}") from (
            error
        )
    _need(isinstance(claims, dict), "is no object")
    held: Mapping[str, Any] = claims
    return held


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _need(good, f"has no time in {name}")
    assert isinstance(value, int | float)
    return float(value)


def _groups(value: object) -> frozenset[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        return frozenset()
    return frozenset(item for item in listed[:MAX_GROUPS] if isinstance(item, str))


def _need(held: bool, otherwise: str) -> None:
    if not held:
        raise UnknownCallerError(f"the sign-in failed: the ID token {otherwise}")
