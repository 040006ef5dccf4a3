"""NATS auth callout: reading the server's question and writing the signed answer.

The server asks for every connection with a JWT (`AuthorizationRequest`), and is answered with a
JWT signed by our account key, whose inner JWT carries the permissions of the connection. Formats:
NATS ADR-26 (auth callout) and NATS JWT version 2. Pure: no socket, no database.

The server names its connections as the answers named their users: `connection_name`.

The question is believed without checking its signature: it comes over our own authenticated
loopback connection to a server that we started ourselves.
"""

import base64
import binascii
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import nkeys
from cryptography import x509
from cryptography.x509.oid import NameOID
from msgspec import Struct, field

from edgefleet_cloud.broker.policy import Allowed

# Where the server delivers QoS 1 messages to the connection itself.
_MQTT_DELIVERY = "$MQTT.sub.>"
# Of one connection. An agent has two, and one more for each file that it downloads.
MAX_SUBSCRIPTIONS = 1000


class _Server(Struct):
    id: str


class _Client(Struct):
    id: int = 0
    type: str = ""
    mqtt_id: str = ""


class _Tls(Struct):
    verified_chains: list[list[str]] = field(default_factory=list)


class _Request(Struct):
    server_id: _Server
    user_nkey: str
    client_info: _Client
    client_tls: _Tls | None = None


class _Claims(Struct):
    nats: _Request


@dataclass(frozen=True)
class Question:
    """Who wants to connect.

    Attributes:
        server: id of the asking server.
        user: one-time key of this connection, the subject of the answer.
        connection: number of the connection at the server.
        client_id: of the MQTT CONNECT; empty for what is not MQTT.
        common_name: of the certificate that TLS has verified; empty without one.
        serial: of that certificate, lower-case hexadecimal.
        expires_at: end of its life, Unix seconds.
    """

    server: str
    user: str
    connection: int
    client_id: str
    common_name: str
    serial: str
    expires_at: float


@dataclass(frozen=True)
class Permissions:
    """NATS subjects that a connection may use."""

    publish: list[str]
    subscribe: list[str]


def permissions(allowed: Allowed) -> Permissions:
    """Return the permissions that let a connection do what the policy allows it."""
    return Permissions(
        publish=[nats_subject(filter_) for filter_ in allowed.publish],
        subscribe=[*(nats_subject(filter_) for filter_ in allowed.read), _MQTT_DELIVERY],
    )


def nats_subject(filter_: str) -> str:
    """Return the NATS subject of an MQTT filter of the policy: no `#`, no empty level, no dot."""
    return filter_.replace("/", ".").replace("+", "*")


def read(token: bytes) -> Question:
    """Return the server's question.

    Raises:
        ValueError: if it is not of the expected form.
    """
    parts = token.split(b".")
    if len(parts) != 3:
        raise ValueError(f"auth request has {len(parts)} parts; expected the 3 of a JWT")
    try:
        body = base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4))
        request = msgspec.json.decode(body, type=_Claims).nats
    except (binascii.Error, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"auth request cannot be read: {error}") from error
    common_name, serial, expires_at = "", "", 0.0
    chains = request.client_tls.verified_chains if request.client_tls else []
    if chains and chains[0]:
        try:
            certificate = x509.load_pem_x509_certificate(chains[0][0].encode())
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except x509.InvalidVersion as error:
            raise ValueError(f"auth request: the certificate cannot be read: {error}") from error
        common_name = str(names[0].value) if len(names) == 1 else ""
        serial = f"{certificate.serial_number:x}"
        expires_at = certificate.not_valid_after_utc.timestamp()
    return Question(
        server=request.server_id.id,
        user=request.user_nkey,
        connection=request.client_info.id,
        client_id=request.client_info.mqtt_id,
        common_name=common_name,
        serial=serial,
        expires_at=expires_at,
    )


def connection_name(common_name: str, serial: str) -> str:
    """Return what the server calls a connection that came with this certificate."""
    return f"{common_name}/{serial}"


class Signer:
    """Writes answers with the account key of the callout.

    Args:
        seed: 32 random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._pair = nkeys.from_seed(bytearray(nkeys.encode_seed(seed, nkeys.PREFIX_BYTE_ACCOUNT)))
        self.issuer: str = bytes(self._pair.public_key).decode()

    def admit(self, question: Question, account: str, allowed: Allowed) -> bytes:
        """Return the answer that lets the connection in, until its certificate expires.

        The user is named by the certificate, which the server tells with its connections.
        """
        granted = permissions(allowed)
        user = self._token(
            question.user,
            account,
            {
                "pub": {"allow": granted.publish},
                "sub": {"allow": granted.subscribe},
                "subs": MAX_SUBSCRIPTIONS,
                "data": -1,
                "payload": -1,
                "allowed_connection_types": ["MQTT"],
                "type": "user",
                "version": 2,
            },
            expires_at=question.expires_at,
            name=connection_name(question.common_name, question.serial),
        )
        return self._answer(question, {"jwt": user})

    def refuse(self, question: Question, reason: str) -> bytes:
        """Return the answer that refuses the connection; `reason` goes to the server's log."""
        return self._answer(question, {"error": reason})

    def _answer(self, question: Question, body: dict[str, Any]) -> bytes:
        claims = body | {"type": "authorization_response", "version": 2}
        return self._token(question.user, question.server, claims).encode()

    def _token(
        self,
        subject: str,
        audience: str,
        body: dict[str, Any],
        *,
        expires_at: float = 0.0,
        name: str = "",
    ) -> str:
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": subject,
            "aud": audience,
            "iat": int(time.time()),
            "nats": body,
        }
        if expires_at:
            claims["exp"] = int(expires_at)
        if name:
            claims["name"] = name
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
        signature = base64.urlsafe_b64encode(self._pair.sign(signed.encode()))
        return f"{signed}.{signature.rstrip(b'=').decode()}"


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()
