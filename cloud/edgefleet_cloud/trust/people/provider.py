"""Talking to an OpenID Connect provider: what it publishes, and a code for an ID token.

Rules:

1. Everything goes over HTTPS, certificates checked, to where the provider's own description says;
   the description has to name the configured issuer. Redirects are not followed.
2. Its keys are asked for again when a token is signed by one that is not known, at most once a
   minute: so a rotation is taken up by itself, and a forger cannot make the hub ask without end.
3. What comes back is bounded, in time and in bytes.
"""

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from edgefleet_cloud.errors import DamagedError, InvalidError, UnknownCallerError
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.people import id_tokens
from edgefleet_cloud.trust.people.id_tokens import Expected, Identity, UnknownKeyError

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 1 << 20
DESCRIPTION_LIFE_S = 3600.0
KEYS_STEP_S = 60.0
KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
_NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class ProviderError(DamagedError):
    """The provider does not answer, or not as the standard says."""


@dataclass(frozen=True)
class Begun:
    """A sign-in that begins.

    Attributes:
        url: where the browser goes.
    """

    url: str
    state: str
    nonce: str
    verifier: str


class Provider:
    """One provider.

    Args:
        settings: the `oidc_*` ones.
        clock: the time now, Unix seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self.issuer = _https(settings.oidc_issuer, "oidc_issuer")
        try:
            context = ssl.create_default_context(cafile=settings.oidc_ca or None)
        except OSError as error:  # what `ssl` raises for a file without certificates is one, too
            raise InvalidError(f"oidc_ca: {settings.oidc_ca}: {error}") from error
        self._http = httpx.Client(
            verify=context,
            timeout=TIMEOUT_S,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )
        self._lock = threading.Lock()
        self._description: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def begin(self) -> Begun:
        """Return where to send a browser, with what has to come back.

        Raises:
            ProviderError: if the provider does not answer.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._settings.oidc_redirect,
            "scope": self._settings.oidc_scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        endpoint = self._describe()["authorization_endpoint"]
        joint = "&" if urlsplit(endpoint).query else "?"
        return Begun(f"{endpoint}{joint}{urlencode(query)}", state, nonce, verifier)

    def finish(self, code: str, issuer: str | None, nonce: str, verifier: str) -> Identity:
        """Return who has signed in.

        Args:
            code: that the browser brought.
            issuer: that it brought (RFC 9207), None if it brought none.
            nonce: of this sign-in.
            verifier: of this sign-in.

        Raises:
            UnknownCallerError: if it is not believed.
            ProviderError: if the provider does not answer.
        """
        description = self._describe()
        named = description.get("authorization_response_iss_parameter_supported") is True
        if issuer != self.issuer and (named or issuer is not None):
            raise UnknownCallerError("the sign-in failed: another provider has answered")
        token = self._exchange(description, code, verifier)
        settings = self._settings
        expected = Expected(
            self.issuer,
            settings.oidc_client_id,
            nonce,
            settings.oidc_name_claim,
            settings.oidc_groups_claim,
        )
        try:
            return id_tokens.read(token, self._key_set(), expected, self._clock())
        except UnknownKeyError:
            return id_tokens.read(token, self._key_set(anew=True), expected, self._clock())

    def _exchange(self, description: Mapping[str, Any], code: str, verifier: str) -> str:
        settings, secret = self._settings, self._settings.oidc_client_secret.reveal()
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": settings.oidc_redirect,
            "code_verifier": verifier,
        }
        methods = description.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        auth = None
        if secret and "client_secret_basic" in methods:
            # RFC 6749, section 2.3.1: both are form-encoded first.
            quoted = (urlencode({"": text})[1:] for text in (settings.oidc_client_id, secret))
            auth = httpx.BasicAuth(*quoted)
        else:
            body["client_id"] = settings.oidc_client_id
            if secret:
                body["client_secret"] = secret
        answer = self._ask("POST", description["token_endpoint"], data=body, auth=auth)
        if answer.status_code in (400, 401):
            raise UnknownCallerError("the sign-in failed: the provider does not accept its code")
        token = _object(answer).get("id_token")
        if not isinstance(token, str):
            raise ProviderError("the OpenID Connect provider answers without an ID token")
        return token

    def _describe(self) -> Mapping[str, Any]:
        with self._lock:
            now = self._clock()
            if self._description is None or self._description[0] + DESCRIPTION_LIFE_S <= now:
                url = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
                said = _object(self._ask("GET", url))
                if said.get("issuer") != self.issuer:
                    raise ProviderError(
                        f"{url} describes the issuer {said.get('issuer')!r}, not {self.issuer!r}"
                    )
                for name in _NEEDED:
                    _https(said.get(name), name)
                self._description = now, said
            return self._description[1]

    def _key_set(self, *, anew: bool = False) -> KeySet:
        url = self._describe()["jwks_uri"]
        with self._lock:
            now = self._clock()
            stale = self._keys is None or (anew and self._keys[0] + KEYS_STEP_S <= now)
            if self._keys is None or stale:
                self._keys = now, _read_keys(_object(self._ask("GET", url)))
            return self._keys[1]

    def _ask(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        try:
            with self._http.stream(method, url, **kwargs) as answer:
                content = b""
                # Not unpacked: the bound would come too late for what some bytes unpack to.
                for part in answer.iter_raw():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        raise ProviderError(f"{url} answers with over {MAX_ANSWER_BYTES} bytes")
                return httpx.Response(answer.status_code, content=content)
        except httpx.HTTPError as error:
            raise ProviderError(
                f"the OpenID Connect provider does not answer at {url}: {error}"
            ) from error


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"the OpenID Connect provider answers no JSON: {error}") from error
    if answer.status_code != 200 or not isinstance(value, dict):
        raise ProviderError(f"the OpenID Connect provider answers {answer.status_code}")
    return value


def _read_keys(said: Mapping[str, Any]) -> KeySet:
    listed = said.get("keys")
    usable = [
        key
        for key in (listed if isinstance(listed, list) else [])
        if isinstance(key, dict)
        and isinstance(key.get("kty"), str)
        and key["kty"] in KEY_TYPES
        and key.get("use", "sig") == "sig"
    ]
    try:
        return KeySet.import_key_set({"keys": usable})
    except (JoseError, ValueError, KeyError, TypeError) as error:  # KeyError: a curve not known
        raise ProviderError(f"the provider's keys cannot be read: {error}") from error


def _https(url: object, what: str) -> str:
    if not isinstance(url, str) or urlsplit(url).scheme != "https" or not urlsplit(url).netloc:
        raise InvalidError(f"{what}: expected an https:// address, got {str(url)[:200]!r}")
    return url
