"""Keys that never leave a TPM 2.0 or a PKCS#11 token: made, shown, and signed with.

Such a key *anchors* the device's identity: it signs the enrolment, each renewal and each statement.
The key of TLS stays a file that lives as long as one short certificate. A stolen file is of use
until that certificate ends or is revoked, and cannot be renewed; a stolen disk is no device.
(Python's TLS cannot use the key in the TPM itself; docs/identity.md says why.) Rules:

1. The hardware is spoken to by programs of the system: `openssl` with the provider `tpm2` (package
   tpm2-openssl) and `pkcs11-tool` (opensc). The agent brings no library of its own for it.
2. Secrets go to them by files and the environment, never by arguments, which others can see.
3. What a program says is passed on; what it does not say in time is an error.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from edgefleet_agent.errors import ConfigError, EnrolmentError
from edgefleet_agent.trusting.identity import AnchorPlace

# A TPM makes a P-256 key in less than a second, a slow one in some.
TIMEOUT_S = 30.0
TPM_KEY = "anchor.key"
_PROVIDERS = ("-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2")
_PIN = "EDGEFLEET_PIN"
_SAID_AT_MOST = 500


def make(place: AnchorPlace) -> None:
    """Make the key, unless it is there.

    Raises:
        EnrolmentError: if the hardware or its program says no.
        ConfigError: if the PIN cannot be read.
    """
    if place.kind == "tpm":
        path = Path(place.file)
        if path.exists():
            return
        arguments = ("-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", str(path))
        _run(["openssl", "genpkey", *_PROVIDERS, *arguments], place)
        path.chmod(0o600)
    elif not _token_key(place):
        options = ("--keypairgen", "--key-type", "EC:prime256v1", "--label", "edgefleet")
        _pkcs11(place, *options, "--usage-sign", login=True)


def public_key(place: AnchorPlace) -> bytes:
    """Return the public key: SubjectPublicKeyInfo, DER.

    Raises:
        EnrolmentError: if there is none, or the hardware or its program says no.
    """
    if place.kind == "tpm":
        arguments = ("-in", place.file, "-pubout", "-outform", "DER")
        return _run(["openssl", "pkey", *_PROVIDERS, *arguments], place)
    key = _token_key(place)
    if not key:
        raise EnrolmentError(f"token {place.token!r} holds no public key with the id {place.id}")
    return key


def sign(place: AnchorPlace, data: bytes) -> bytes:
    """Return the ECDSA signature with SHA-256 (DER) of `data`.

    Raises:
        EnrolmentError: if the hardware or its program says no.
        ConfigError: if the PIN cannot be read.
    """
    if place.kind == "tpm":
        arguments = ("-sign", place.file)
        return _run(["openssl", "dgst", "-sha256", *_PROVIDERS, *arguments], place, given=data)
    # Tokens know ECDSA over a digest; few of them hash by themselves.
    with tempfile.TemporaryDirectory() as folder:
        said, signed = Path(folder) / "digest", Path(folder) / "signature"
        said.write_bytes(sha256(data).digest())
        form = ("--signature-format", "openssl", "-i", str(said), "-o", str(signed))
        _pkcs11(place, "--sign", "-m", "ECDSA", *form, login=True)
        return signed.read_bytes()


def fingerprint(place: AnchorPlace) -> str:
    """Return the SHA-256 of the public key, as an operator announces it to the hub."""
    return sha256(public_key(place)).hexdigest()


def _token_key(place: AnchorPlace) -> bytes:
    """Return the public key in the token, empty if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "public"
        try:
            _pkcs11(place, "--read-object", "--type", "pubkey", "-o", str(path), login=False)
        except EnrolmentError as error:
            if "not found" in str(error):
                return b""
            raise
        return path.read_bytes()


def _pkcs11(place: AnchorPlace, *arguments: str, login: bool) -> bytes:
    command = ["pkcs11-tool", "--module", place.module, "--token-label", place.token]
    command += [*arguments, "--id", place.id]
    secret = {}
    if login:
        try:
            secret[_PIN] = Path(place.pin_file).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"[key] pin_file {place.pin_file!r}: {error}") from error
        command += ["--login", "--pin", f"env:{_PIN}"]
    return _run(command, place, secret=secret)


def _run(
    command: Sequence[str],
    place: AnchorPlace,
    *,
    given: bytes = b"",
    secret: Mapping[str, str] | None = None,
) -> bytes:
    environment = {**os.environ, **(secret or {})}
    if place.tcti:
        environment["TPM2OPENSSL_TCTI"] = place.tcti
    package = {"openssl": "openssl", "pkcs11-tool": "opensc"}[command[0]]
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise EnrolmentError(
            f"there is no program {command[0]}; install the package {package}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnrolmentError(f"the {place.kind} key cannot be used: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-_SAID_AT_MOST:]
        hint = " (is the package tpm2-openssl installed?)" if place.kind == "tpm" else ""
        raise EnrolmentError(f"the {place.kind} key cannot be used{hint}: {said}")
    return done.stdout
