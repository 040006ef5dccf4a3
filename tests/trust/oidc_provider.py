"""A small OpenID Connect provider as a process of its own: real TLS, codes, PKCE, signatures.

It signs in whom `POST /control` names, at once, and misbehaves as that says. Run as
`python -m tests.trust.oidc_provider PORT CERTIFICATE KEY`; it prints a line when it listens.
"""

import base64
import hashlib
import hmac
import json
import secrets
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import ECKey, KeySet, RSAKey

CLIENT, SECRET = "edgefleet", "p+ss:w/rd of the client"  # with what form-encoding has to escape


class State:
    """What the provider knows and does.

    Attributes:
        user: claims of who signs in.
        faults: claims to override (None removes), and `alg`, `key`, `kid`, `iss_parameter`,
            `discovery`.
    """

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.user: dict[str, Any] = {}
        self.faults: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.rotate("RS256")
        self.asked: list[str] = []

    def rotate(self, algorithm: str) -> None:
        parameters = {"kid": secrets.token_hex(4), "use": "sig"}
        self.algorithm = algorithm
        self.key = (
            RSAKey.generate_key(2048, parameters)
            if algorithm == "RS256"
            else ECKey.generate_key("P-256", parameters)
        )

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "authorization_response_iss_parameter_supported": True,
            **self.faults.get("discovery", {}),
        }

    def id_token(self, nonce: str) -> str:
        now = time.time()
        claims: dict[str, Any] = {
            "iss": self.issuer, "aud": CLIENT, "exp": now + 300, "iat": now, "nonce": nonce,
            **self.user, **self.faults.get("claims", {}),
        }  # fmt: skip
        payload = json.dumps({k: v for k, v in claims.items() if v is not None}).encode()
        header = {"alg": self.algorithm, "kid": self.faults.get("kid", self.key.kid)}
        how = self.faults.get("sign")
        if how == "none":
            return f"{_joined({'alg': 'none'}, payload)}."
        if how == "public key as secret":
            signed = _joined({**header, "alg": "HS256"}, payload)
            mac = hmac.digest(self.key.as_pem(private=False), signed.encode(), "sha256")
            return f"{signed}.{_quoted(mac)}"
        key = self.key
        if how == "another key":
            key = RSAKey.generate_key(2048)
        return jws.serialize_compact(header, payload, key, algorithms=["RS256", "ES256"])


def _quoted(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _joined(header: dict[str, Any], payload: bytes) -> str:
    return f"{_quoted(json.dumps(header).encode())}.{_quoted(payload)}"


class Handler(BaseHTTPRequestHandler):
    """Answers requests."""

    state: State

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer discovery, keys and authorisation."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.state.asked.append(path)
        if path == "/.well-known/openid-configuration":
            self._json(200, self.state.discovery())
        elif path == "/keys":
            self._json(200, KeySet([self.state.key]).as_dict(private=False))
        elif path == "/asked":
            self._json(200, self.state.asked)
        elif path == "/authorize":
            values = {name: texts[0] for name, texts in query.items()}
            assert values["response_type"] == "code"
            assert values["code_challenge_method"] == "S256"
            code = secrets.token_urlsafe(16)
            self.state.codes[code] = values
            back = {"code": code, "state": values["state"], "iss": self.state.issuer}
            back |= self.state.faults.get("back", {})
            given = {name: text for name, text in back.items() if text is not None}
            self.send_response(303)
            self.send_header("Location", f"{values['redirect_uri']}?{urlencode(given)}")
            self.end_headers()
        else:
            self._json(404, {})

    def do_POST(self) -> None:
        """Answer token requests, and be told what to do."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/control":
            told = json.loads(body)
            self.state.user = told.get("user", self.state.user)
            self.state.faults = told.get("faults", {})
            if "rotate" in told:
                self.state.rotate(told["rotate"])
            self._json(200, {})
            return
        values = {name: texts[0] for name, texts in parse_qs(body).items()}
        asked = self.state.codes.pop(values.get("code", ""), None)
        if not self._is_client():
            self._json(401, {"error": "invalid_client"})
        elif asked is None or not self._fits(asked, values):
            self._json(400, {"error": "invalid_grant"})
        else:
            token = self.state.id_token(asked["nonce"])
            self._json(200, {"id_token": token, "access_token": "x", "token_type": "Bearer"})

    def _is_client(self) -> bool:
        scheme, _, text = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            return False
        name, _, secret = base64.b64decode(text).decode().partition(":")
        return (unquote_plus(name), unquote_plus(secret)) == (CLIENT, SECRET)

    def _fits(self, asked: dict[str, str], values: dict[str, str]) -> bool:
        digest = hashlib.sha256(values.get("code_verifier", "").encode()).digest()
        challenge = _quoted(digest)
        return (
            values.get("grant_type") == "authorization_code"
            and challenge == asked["code_challenge"]
            and values.get("redirect_uri") == asked["redirect_uri"]
        )

    def _json(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until killed."""
    port, certificate, key = sys.argv[1:]
    Handler.state = State(f"https://localhost:{port}")
    server = ThreadingHTTPServer(("localhost", int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
