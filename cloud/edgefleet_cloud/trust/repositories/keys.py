"""Signing keys wherever they lie: a signer for each URI, and where its secret comes from.

| URI | key |
|---|---|
| `PATH`, `pem:PATH` | PEM file, encrypted or not (`keyfiles`) |
| `hsm:[ID][?label=TOKEN]` | PKCS#11 token; `PYKCS11LIB` names the module; P-256 or P-384 |
| `awskms:…`, `gcpkms:…`, `azurekms:…` | cloud KMS, with the credentials of the environment |

Cloud keys need securesystemslib's extra of that cloud, installed by whoever uses them. Rules:

1. A passphrase or PIN comes from a file, the environment or the terminal; never from an argument,
   which other users of the machine can read. It is never logged, and no error text repeats it.
2. A prompt names the key that it is for.
"""

import getpass
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    AWSSigner,
    AzureSigner,
    GCPSigner,
    HSMSigner,
    Signer,
    SSlibKey,
)

from edgefleet_cloud.errors import HubError, InvalidError
from edgefleet_cloud.trust.repositories import keyfiles

PASSPHRASE, PASSPHRASE_FILE = "EDGEFLEET_PASSPHRASE", "EDGEFLEET_PASSPHRASE_FILE"
# Asks a person for the secret of a key; the argument says which.
Prompt = Callable[[str], str]


class KeyUnusableError(HubError):
    """A key cannot be reached or opened."""


class Secrets:
    """Where passphrases and PINs come from (rule 1).

    Args:
        environment: looked at first.
        file: holds one secret in its first line; instead of `EDGEFLEET_PASSPHRASE_FILE`.
        prompt: asks a person; None where there is none.
    """

    def __init__(
        self, environment: Mapping[str, str], file: Path | None = None, prompt: Prompt | None = None
    ) -> None:
        self._environment = environment
        named = environment.get(PASSPHRASE_FILE)
        self._file = file or (Path(named) if named else None)
        self._prompt = prompt

    def __repr__(self) -> str:
        return "Secrets()"

    @property
    def unattended(self) -> bool:
        """Whether there is a secret that nobody has to be asked for."""
        return self._file is not None or bool(self._environment.get(PASSPHRASE))

    def get(self, what: str) -> str:
        """Return the secret for a key.

        Args:
            what: the key, for the prompt and the error.

        Raises:
            KeyUnusableError: if there is no source, or the file cannot be read or is empty.
        """
        if self._file is not None:
            return _first_line(self._file)
        given = self._environment.get(PASSPHRASE)
        if given:
            return given
        if self._prompt is not None:
            return self._prompt(what)
        raise KeyUnusableError(
            f"{what} needs a passphrase: set {PASSPHRASE_FILE} to a file that holds it (or"
            f" {PASSPHRASE}), or run this on a terminal"
        )


def terminal_secrets(file: Path | None = None) -> Secrets:
    """Return the secrets of a command: file, environment, and the terminal if there is one."""
    return Secrets(os.environ, file, _ask if sys.stdin.isatty() else None)


def load(uri: str, secrets: Secrets) -> Signer:
    """Return the signer of a URI.

    Raises:
        InvalidError: if there is no such kind of URI.
        DamagedError: if a key file cannot be read.
        KeyUnusableError: if a token or cloud key cannot be reached, or a secret is missing.
    """
    scheme, _, rest = uri.partition(":")
    if scheme in _REMOTE:
        return _remote(uri, scheme, secrets)
    path = Path(rest if scheme == "pem" else uri)
    if not path.exists() and scheme not in ("pem", uri):
        known = ", ".join(sorted(_REMOTE))
        raise InvalidError(f"no key {uri!r}: expected the path of a PEM file, or one of {known}")
    encrypted = keyfiles.is_encrypted(path)
    return keyfiles.read(path, secrets.get(str(path)).encode() if encrypted else None)


def public_key(uri: str, secrets: Secrets) -> SSlibKey:
    """Return the public half of a key; a key file with a `.pub` beside it needs no passphrase.

    Raises:
        As `load`.
    """
    path = Path(uri.removeprefix("pem:"))
    public = path.with_suffix(".pub")
    if path.suffix == ".pub" or public.exists():
        return keyfiles.read_public(_bytes(public), str(public))
    key = load(uri, secrets).public_key
    assert isinstance(key, SSlibKey)  # of every kind of key that `load` knows
    return key


def _remote(uri: str, scheme: str, secrets: Secrets) -> Signer:
    def secret(_name: str) -> str:
        return secrets.get(f"{uri} (PIN)")

    try:
        _, key = _REMOTE[scheme](uri, secret)
        return Signer.from_priv_key_uri(uri, key, secret)
    except HubError:
        raise
    except UnsupportedLibraryError as error:
        # securesystemslib's extras are named like the schemes.
        raise KeyUnusableError(
            f"{uri}: {error}; install securesystemslib[{scheme}] beside the hub"
        ) from error
    # Tokens and clouds raise errors of their own libraries, which need not be installed.
    except Exception as error:
        raise KeyUnusableError(f"{uri} cannot be used: {error or type(error).__name__}") from error


def _import_hsm(uri: str, secret: Prompt) -> tuple[str, SSlibKey]:
    parts = urlsplit(uri)
    label = dict(parse_qsl(parts.query)).get("label")
    return HSMSigner.import_(int(parts.path) if parts.path else None, label, secret)


def _import_azure(uri: str, _secret: Prompt) -> tuple[str, SSlibKey]:
    # azurekms://VAULT.vault.azure.net/keys/NAME/VERSION
    parts = urlsplit(uri)
    return AzureSigner.import_((parts.hostname or "").partition(".")[0], parts.path.split("/")[2])


_REMOTE: dict[str, Callable[[str, Prompt], tuple[str, SSlibKey]]] = {
    "hsm": _import_hsm,
    "awskms": lambda uri, _secret: AWSSigner.import_(uri.partition(":")[2]),
    "gcpkms": lambda uri, _secret: GCPSigner.import_(uri.partition(":")[2]),
    "azurekms": _import_azure,
}


def _ask(what: str) -> str:
    return getpass.getpass(f"Passphrase of {what}: ")


def ask_twice(what: str) -> str:
    """Ask a person for a new passphrase, twice.

    Raises:
        InvalidError: if the two differ, or it is too short.
    """
    chosen = getpass.getpass(f"New passphrase for {what}: ")
    keyfiles.check_passphrase(chosen)
    if getpass.getpass("The same again: ") != chosen:
        raise InvalidError("the two passphrases differ")
    return chosen


def _first_line(path: Path) -> str:
    lines = _bytes(path).decode("utf-8", "replace").splitlines()
    if not lines or not lines[0]:
        raise KeyUnusableError(f"the passphrase file {path} is empty")
    return lines[0]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusableError(f"{path} cannot be read: {error.strerror}") from error
