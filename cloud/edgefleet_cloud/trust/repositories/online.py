"""The keys that the hub signs with by itself.

They are files in one folder, named by role and key id, or lie elsewhere and are named by URI in the
settings (`online_keys`). Which key signs for which role is said by the roots and the delegations
alone. Rules:

1. A key is made before the metadata that names it is drafted, and stays when it is replaced: as
   long as older metadata is in force, it is needed.
2. A key that metadata names and that is not here is damage, never a reason to make another one.
3. A new file is encrypted if there is a passphrase that nobody has to type.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust.repositories import keyfiles, keys, layout
from edgefleet_cloud.trust.repositories.keys import Secrets


class OnlineKeys:
    """The online keys of one repository; open them with `OnlineKeys.open`."""

    def __init__(self, folder: Path, secrets: Secrets, signers: Mapping[str, Signer]) -> None:
        self._folder = folder
        self._secrets = secrets
        self._signers = dict(signers)

    @classmethod
    def open(
        cls, folder: Path, uris: Iterable[str] = (), secrets: Secrets | None = None
    ) -> "OnlineKeys":
        """Read all keys.

        Args:
            folder: of the key files; need not exist.
            uris: of keys that lie elsewhere.
            secrets: passphrases and PINs; none by default.

        Raises:
            DamagedError: if a key file cannot be read.
            KeyUnusableError: if a secret is missing, or a token or cloud key cannot be reached.
        """
        secrets = secrets or Secrets({})
        signers = [keys.load(str(path), secrets) for path in sorted(folder.glob("*.pem"))]
        signers += [keys.load(uri, secrets) for uri in uris]
        return cls(folder, secrets, {signer.public_key.keyid: signer for signer in signers})

    def make(self, role: str) -> SSlibKey:
        """Make a key for a role of `layout.ONLINE_ROLES`, and return its public half."""
        signer = CryptoSigner.generate_ed25519()
        keyid = signer.public_key.keyid
        passphrase = (
            self._secrets.get("the hub's online keys") if self._secrets.unattended else None
        )
        path = self._folder / f"{layout.role_of(role)}-{keyid[:16]}.pem"
        keyfiles.write(path, signer, role, passphrase)
        self._signers[keyid] = signer
        return signer.public_key

    def holds(self, keyids: Iterable[str]) -> bool:
        """Tell whether at least one of these keys is here."""
        return any(keyid in self._signers for keyid in keyids)

    def public(self, keyid: str) -> SSlibKey:
        """Return the public half of a key that is here.

        Raises:
            InvalidError: if it is not.
        """
        if keyid not in self._signers:
            raise InvalidError(
                f"the hub does not hold the key {keyid[:16]}; name its URI in the setting"
                " online_keys first, and start the hub again"
            )
        key = self._signers[keyid].public_key
        assert isinstance(key, SSlibKey)  # of every kind of key that `keys.load` knows
        return key

    def signers(self, role: str, keyids: Iterable[str]) -> list[Signer]:
        """Return the signers of those of the keys that are here.

        Raises:
            DamagedError: if there is none.
        """
        found = [self._signers[keyid] for keyid in keyids if keyid in self._signers]
        if not found:
            raise DamagedError(
                f"the signing key of {role} is not in {self._folder} and not among the online_keys"
                " of the settings; restore it from a backup, or see `edgefleet trust recover`"
            )
        return found
