"""NATS auth callout: reading the server's question and writing the signed answer.

The server asks for every connection with a JWT (`AuthorizationRequest`), and is answered with a
JWT signed by our account key, whose inner JWT carries the permissions of the connection. Formats:
NATS ADR-26 (auth callout) and NATS JWT version 2. Pure: no socket, no database.

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

# Which MQTT topics (as NATS subjects) a device may use; see `edgefleet_protocol.topics`.
_MQTT_DELIVERY = "$MQTT.sub.>"


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


def of_device(device_id: str) -> Permissions:
    """Return what a device may do: publish its own up-topics, read its own down- and the fleet's.

    `$MQTT.sub.>` is where NATS delivers QoS 1 messages to the connection itself.
    """
    return Permissions(
        publish=[f"ef.1.d.{device_id}.up.>"],
        subscribe=[f"ef.1.d.{device_id}.down.>", "ef.1.fleet.>", _MQTT_DELIVERY],
    )


def of_hub() -> Permissions:
    """Return what the hub's own link may do."""
    return Permissions(publish=["ef.1.>"], subscribe=["ef.1.>", _MQTT_DELIVERY])


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
    except (binascii.Error, msgspec.DecodeError) as error:
        raise ValueError(f"auth request cannot be read: {error}") from error
    common_name, serial, expires_at = "", "", 0.0
    chains = request.client_tls.verified_chains if request.client_tls else []
    if chains and chains[0]:
        certificate = x509.load_pem_x509_certificate(chains[0][0].encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
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


class Signer:
    """Writes answers with the account key of the callout.

    Args:
        seed: 32 random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._pair = nkeys.from_seed(bytearray(nkeys.encode_seed(seed, nkeys.PREFIX_BYTE_ACCOUNT)))
        self.issuer: str = bytes(self._pair.public_key).decode()

    def admit(self, question: Question, account: str, permissions: Permissions) -> bytes:
        """Return the answer that lets the connection in, until its certificate expires."""
        user = self._token(
            question.user,
            account,
            {
                "pub": {"allow": permissions.publish},
                "sub": {"allow": permissions.subscribe},
                "subs": -1,
                "data": -1,
                "payload": -1,
                "allowed_connection_types": ["MQTT"],
                "type": "user",
                "version": 2,
            },
            expires_at=question.expires_at,
        )
        return self._answer(question, {"jwt": user})

    def refuse(self, question: Question, reason: str) -> bytes:
        """Return the answer that refuses the connection; `reason` goes to the server's log."""
        return self._answer(question, {"error": reason})

    def _answer(self, question: Question, body: dict[str, Any]) -> bytes:
        claims = body | {"type": "authorization_response", "version": 2}
        return self._token(question.user, question.server, claims).encode()

    def _token(
        self, subject: str, audience: str, body: dict[str, Any], expires_at: float = 0.0
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
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
        signature = base64.urlsafe_b64encode(self._pair.sign(signed.encode()))
        return f"{signed}.{signature.rstrip(b'=').decode()}"


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()
