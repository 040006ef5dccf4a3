"""The identity of an enrolled device: keys, certificates and trust anchors on disk.

Rules:

1. `identity/hub.json` is written last, so a store that has it has all the others too.
2. A renewed certificate lies in `identity/next` with its key, beside the one before, until the hub
   has taken a connection with it; then it takes the other's place (`promote`). Both are tried, the
   new one first, so that no moment is without a certificate that the hub accepts.
3. In `next`, the key is written first, and moved first. So a key alone there is a renewal that was
   cut off, and a certificate alone a move that was: its key is in place already.
4. A device may have an *anchor*: a key in a TPM or PKCS#11 token that never leaves it and signs
   renewals and statements (`anchors`). `identity/anchor.json` says where it is.
"""

import ssl
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgefleet_agent import files
from edgefleet_agent.errors import EnrolmentError, StoreError

FOLDER = "identity"
NEXT = "next"
DIRECTOR_ROOT = "director-root.json"
KEY, CERTIFICATE, CA, ANCHOR = "device.key", "device.pem", "ca.pem", "anchor.json"


class Hub(Struct, frozen=True):
    """Where the hub is, and under which name it knows this device."""

    device: str
    mqtt_host: str
    mqtt_port: Annotated[int, Meta(ge=1, le=65_535)]
    api_url: str


class Credential(Struct, frozen=True):
    """A certificate and its key, as files.

    Attributes:
        renewed: whether it has not taken the place of the one before yet.
    """

    key: Path
    certificate: Path
    renewed: bool = False


class AnchorPlace(Struct, frozen=True, omit_defaults=True):
    """Where the anchor is.

    Attributes:
        file: of a TPM key (`TSS2 PRIVATE KEY`, of no use without this very TPM).
        tcti: how the TPM is reached; empty for the system's own way.
        module: PKCS#11 library.
        token: label of the token in it.
        id: of the key in the token, hexadecimal.
        pin_file: that holds the token's PIN and nothing else.
    """

    kind: Literal["tpm", "pkcs11"]
    file: str = ""
    tcti: str = ""
    module: str = ""
    token: str = ""
    id: str = ""
    pin_file: str = ""


class Identity(Struct, frozen=True):
    """Paths of the identity files, and what they say.

    Attributes:
        image_root: version 1 of the image repository's root role, as received at enrolment.
        director_root: likewise of the director's.
    """

    hub: Hub
    folder: Path
    image_root: bytes
    director_root: bytes

    @property
    def ca(self) -> Path:
        """Authorities of the hub that this device trusts, PEM."""
        return self.folder / CA

    @property
    def key(self) -> Path:
        """Key of the certificate that is tried first."""
        return self.credentials()[0].key

    @property
    def certificate(self) -> Path:
        """Certificate that is tried first."""
        return self.credentials()[0].certificate

    def credentials(self) -> list[Credential]:
        """Return the certificates to connect with, in this order; read anew each time (rule 2)."""
        fresh = self.folder / NEXT
        current = Credential(self.folder / KEY, self.folder / CERTIFICATE)
        if not (fresh / CERTIFICATE).exists():
            return [current]
        if not (fresh / KEY).exists():  # rule 3
            return [Credential(current.key, fresh / CERTIFICATE, renewed=True)]
        return [Credential(fresh / KEY, fresh / CERTIFICATE, renewed=True), current]


def is_enrolled(store: Path) -> bool:
    """Tell whether the store holds a whole identity."""
    return (store / FOLDER / "hub.json").is_file()


def load(store: Path) -> Identity:
    """Read the identity of an enrolled device.

    Raises:
        EnrolmentError: if the device is not enrolled, or a file is missing or damaged.
    """
    folder = store / FOLDER
    if not is_enrolled(store):
        raise EnrolmentError(
            f"this device is not enrolled (no {folder / 'hub.json'});"
            " run: edgefleet-agent enroll --hub URL --token CLAIM"
        )
    try:
        hub = msgspec.json.decode((folder / "hub.json").read_bytes(), type=Hub)
        for name in (KEY, CERTIFICATE, CA):
            (folder / name).read_bytes()
        return Identity(
            hub,
            folder,
            (folder / "image-root.json").read_bytes(),
            (folder / DIRECTOR_ROOT).read_bytes(),
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(
            f"the identity in {folder} is damaged ({error}); enrol again with --force"
        ) from error


def save(
    store: Path,
    hub: Hub,
    *,
    key: bytes,
    certificate: bytes,
    ca: bytes,
    image_root: bytes,
    director_root: bytes,
    anchor: AnchorPlace | None = None,
) -> None:
    """Write a new identity, each file atomically; the key is readable by its owner only."""
    folder = store / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # An older identity stops counting before its first file changes.
    (folder / "hub.json").unlink(missing_ok=True)
    (folder / ANCHOR).unlink(missing_ok=True)
    for name in (CERTIFICATE, KEY):
        (folder / NEXT / name).unlink(missing_ok=True)
    files.sync_folder(folder)
    files.replace(folder / KEY, key, mode=0o600)
    files.replace(folder / CERTIFICATE, certificate)
    files.replace(folder / CA, ca)
    if anchor:
        files.replace(folder / ANCHOR, msgspec.json.format(msgspec.json.encode(anchor)))
    files.replace(folder / "image-root.json", image_root)
    files.replace(folder / DIRECTOR_ROOT, director_root)
    files.replace(folder / "hub.json", msgspec.json.format(msgspec.json.encode(hub)))


def anchor(folder: Path) -> AnchorPlace | None:
    """Return where the anchor is, None if the device has none.

    Args:
        folder: of the identity.

    Raises:
        EnrolmentError: if that cannot be read.
    """
    path = folder / ANCHOR
    try:
        return msgspec.json.decode(path.read_bytes(), type=AnchorPlace)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(
            f"{path} cannot be read ({error}); enrol again with --force"
        ) from error


def keep(folder: Path, key: bytes, certificate: bytes) -> None:
    """Keep a renewed certificate and its key beside the one that asked for it.

    One that was renewed before, and asked, takes its place first: the hub knows it by now.

    Raises:
        StoreError: if they cannot be written; the one that asked is still there then.
    """
    promote(folder)
    fresh = folder / NEXT
    try:
        fresh.mkdir(exist_ok=True, mode=0o700)
        files.replace(fresh / KEY, key, mode=0o600)
        files.sync_folder(folder)
        files.replace(fresh / CERTIFICATE, certificate)
    except OSError as error:
        raise StoreError(f"the renewed certificate cannot be written: {error}") from error


def promote(folder: Path) -> None:
    """Put the renewed certificate in the place of the one before; nothing if there is none.

    Raises:
        StoreError: if the files cannot be moved; both certificates are still there then.
    """
    fresh = folder / NEXT
    try:
        if not (fresh / CERTIFICATE).exists():
            return
        if (fresh / KEY).exists():
            files.commit(fresh / KEY, folder / KEY)
            files.sync_folder(fresh)
        files.commit(fresh / CERTIFICATE, folder / CERTIFICATE)
        files.sync_folder(fresh)
    except OSError as error:
        raise StoreError(f"the renewed certificate cannot be put in place: {error}") from error


def adopt(folder: Path, authorities: list[str]) -> bool:
    """Trust these authorities of the hub from now on; return whether they differ from before.

    Args:
        folder: of the identity.
        authorities: PEM, from verified image metadata; empty says nothing, and changes nothing.

    Raises:
        EnrolmentError: if one of them is no certificate of an authority.
        StoreError: if they cannot be written.
    """
    # Each with one line end, whatever the signer's editor left.
    bundle = "".join(f"{one.strip()}\n" for one in authorities).encode("utf-8")
    try:
        if not authorities or (folder / CA).read_bytes() == bundle:
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=bundle.decode("ascii"))
        if len(context.get_ca_certs()) != len(set(authorities)):
            raise ValueError("one of them may not sign certificates")
    except (ssl.SSLError, ValueError) as error:
        raise EnrolmentError(
            f"the signed list of the hub's authorities cannot be used ({error}); the ones before"
            " are kept"
        ) from error
    except OSError as error:
        raise StoreError(f"authorities of the hub cannot be read: {error}") from error
    try:
        files.replace(folder / CA, bundle)
    except OSError as error:
        raise StoreError(f"authorities of the hub cannot be written: {error}") from error
    return True
