"""Parts for tests of trust: a founded fleet whose offline keys are at hand."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from edgefleet_cloud.trust.repositories import drafts, founding, keyfiles
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.drafts import Held
from edgefleet_cloud.trust.repositories.founding import Holders, Plan
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_cloud.values import Json


@dataclass
class Founded:
    """Both repositories, and the keys that people hold.

    Attributes:
        home: of the hub; the repositories are in `images` and `director`.
        signers: name → key: `root-1` to `root-3`, `targets-1` to `targets-3`.
    """

    home: Path
    clock: Callable[[], float]
    images: ImageRepository
    director: Director
    signers: dict[str, CryptoSigner] = field(default_factory=dict)

    def reopen(self) -> None:
        """Open both again, as a hub that starts does."""
        self.images = ImageRepository.open(self.home / "images", self.clock)
        self.director = Director.open(self.home / "director", self.clock)


def founded(home: Path, clock: Callable[[], float], fleet: Json | None = None) -> Founded:
    """Found a fleet, 2 of 3 for roots and targets, or open the one that is there.

    Args:
        home: of the hub.
        clock: the time now.
        fleet: signed field of the top-level targets.
    """
    signers: dict[str, CryptoSigner] = {}
    if not founding.is_founded(home):
        signers = {
            f"{role}-{n}": signer(f"{role}-{n}") for role in ("root", "targets") for n in (1, 2, 3)
        }
        plan = Plan(
            Holders(public(s for name, s in signers.items() if name.startswith("root")), 2),
            Holders(public(s for name, s in signers.items() if name.startswith("targets")), 2),
            fleet=fleet or {},
        )
        files = founding.first(home, plan, clock())
        drafts.sign(
            files, Held(), [signers[f"{role}-{n}"] for role in ("root", "targets") for n in (1, 2)]
        )
        founding.put_in_place(home, files)
    images = ImageRepository.open(home / "images", clock)
    return Founded(home, clock, images, Director.open(home / "director", clock), signers)


def signer(name: str) -> CryptoSigner:
    """Return a new key with a name, in memory only."""
    made = CryptoSigner.generate_ed25519()
    keyfiles.label(made.public_key, name)
    return made


def public(signers: Iterable[CryptoSigner]) -> list[SSlibKey]:
    """Return the public halves."""
    return [made.public_key for made in signers]
