"""Names that travel on topics, in files and in certificates, and their one allowed form.

Device ids become MQTT client ids, certificate common names and topic levels. NATS turns `/` into
`.` and refuses spaces, so ids keep to letters, digits, `_` and `-` (docs/adr/0004).
"""

import re
from hashlib import sha256

from edgefleet_protocol.errors import MalformedError

_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def device_id(text: str) -> str:
    """Return `text` if it is a device id: 1 to 64 of letters, digits, `_`, `-`.

    Raises:
        MalformedError: if it is not.
    """
    return _checked(_DEVICE_ID, text, "device id", "1 to 64 letters, digits, '_' or '-'")


def model_name(text: str) -> str:
    """Return `text` if it is a model name: 1 to 64 of lower-case letters, digits, `_`, `-`.

    Raises:
        MalformedError: if it is not.
    """
    return _checked(_MODEL_NAME, text, "model name", "1 to 64 lower-case letters, digits, '_', '-'")


def digest(text: str) -> str:
    """Return `text` if it is a SHA-256 digest in lower-case hexadecimal (64 characters).

    Raises:
        MalformedError: if it is not.
    """
    return _checked(_DIGEST, text, "digest", "64 lower-case hexadecimal digits (SHA-256)")


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 digest of `data` in lower-case hexadecimal."""
    return sha256(data).hexdigest()


def _checked(pattern: re.Pattern[str], text: str, what: str, form: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise MalformedError(f"{str(text)[:80]!r} is no {what}: expected {form}")
    return text
