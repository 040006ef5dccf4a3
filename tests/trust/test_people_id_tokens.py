"""Every check of an ID token, at its edge."""

import json
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, KeySet

from edgefleet_cloud.errors import UnknownCallerError
from edgefleet_cloud.trust.people import id_tokens
from edgefleet_cloud.trust.people.id_tokens import Expected, Identity, UnknownKeyError

NOW = 1_800_000_000.0
ISSUER = "https://id.example"
KEY = ECKey.generate_key("P-256", {"kid": "k1"})
EXPECTED = Expected(ISSUER, "edgefleet", "the nonce", "preferred_username", "groups")
CLAIMS = {
    "iss": ISSUER, "aud": "edgefleet", "sub": "u-1", "nonce": "the nonce",
    "iat": NOW, "exp": NOW + 300, "preferred_username": "ada", "groups": ["a", "b"],
}  # fmt: skip


def read(changes: dict[str, Any], *, header: dict[str, Any] | None = None) -> Identity:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    token = jws.serialize_compact(
        {"alg": "ES256", "kid": "k1"} | (header or {}), json.dumps(claims).encode(), KEY
    )
    return id_tokens.read(token, KeySet([KEY]), EXPECTED, NOW)


def test_a_token_that_fits_says_who_it_is() -> None:
    assert read({}) == Identity(ISSUER, "u-1", "ada", frozenset({"a", "b"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["edgefleet"]},
        {"aud": ["another", "edgefleet"], "azp": "edgefleet"},
        {"exp": NOW - 59.9},
        {"iat": NOW + 59.9},
        {"iat": NOW - 599.9},
        {"nbf": NOW + 59.9},
        {"sub": "x" * 255},
    ],
)
def test_a_token_just_inside_a_limit_is_believed(changes: dict[str, Any]) -> None:
    assert read(changes).issuer == ISSUER


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iss": "https://evil.example"}, "is of another issuer"),
        ({"iss": ISSUER + "/"}, "is of another issuer"),
        ({"iss": None}, "is of another issuer"),
        ({"aud": "another"}, "is for another client"),
        ({"aud": "edgefleet2"}, "is for another client"),
        ({"aud": None}, "is for another client"),
        ({"aud": {"edgefleet": 1}}, "is for another client"),
        ({"aud": ["edgefleet", "another"]}, "was issued to another client"),
        ({"azp": "another"}, "was issued to another client"),
        ({"exp": NOW - 60}, "has expired"),
        ({"exp": None}, "has no time in exp"),
        ({"exp": True}, "has no time in exp"),
        ({"exp": "never"}, "has no time in exp"),
        ({"exp": float("inf")}, "has no time in exp"),
        ({"iat": NOW + 60}, "is from the future"),
        ({"iat": NOW - 600}, "is old"),
        ({"iat": None}, "has no time in iat"),
        ({"nbf": NOW + 60}, "is not valid yet"),
        ({"nonce": "another nonce"}, "is of another sign-in"),
        ({"nonce": None}, "is of another sign-in"),
        ({"nonce": 7}, "is of another sign-in"),
        ({"sub": None}, "names nobody"),
        ({"sub": ""}, "names nobody"),
        ({"sub": 7}, "names nobody"),
        ({"sub": "x" * 256}, "names nobody"),
    ],
)
def test_a_token_that_does_not_fit_is_refused_with_the_check(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownCallerError, match=said):
        read(changes)


@pytest.mark.parametrize(
    ("value", "groups"), [(None, set()), ("one", {"one"}), (7, set()), (["a", 7, None], {"a"})]
)
def test_groups_that_are_no_list_of_texts_give_what_is_there(value: Any, groups: set[str]) -> None:
    assert read({"groups": value}).groups == groups


def test_a_key_that_is_not_known_is_told_apart() -> None:
    with pytest.raises(UnknownKeyError):
        read({}, header={"kid": "k2"})


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "....", "é.é.é", "x" * 32_769])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(UnknownCallerError):
        id_tokens.read(token, KeySet([KEY]), EXPECTED, NOW)


def test_every_changed_byte_is_found() -> None:
    claims = json.dumps(CLAIMS).encode()
    token = jws.serialize_compact({"alg": "ES256", "kid": "k1"}, claims, KEY)
    for place in range(0, len(token) - 2, 7):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(UnknownCallerError):
            id_tokens.read(token[:place] + other + token[place + 1 :], KeySet([KEY]), EXPECTED, NOW)
