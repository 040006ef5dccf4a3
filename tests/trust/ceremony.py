"""A founded fleet with its people, for tests of ceremonies and drills."""

import time
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from edgefleet_agent.trusting import tufclient
from edgefleet_agent.trusting.refresh import Refresh
from edgefleet_agent.trusting.trust import Accepted, Trust, Waiting
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.repositories import drafts, exchange, keyfiles
from edgefleet_cloud.trust.repositories.ceremonies import Ceremonies
from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_cloud.trust.repositories.images import ImageEntry
from edgefleet_cloud.trust.repositories.testing import Founded
from edgefleet_protocol.trust import DirectorTarget, ImageTarget, target_path

BOARD = "generic-x86_64"
DIGEST = "ab" * 32


@dataclass
class Fleet:
    """Both repositories, the people who sign, and what the hub counts for one device."""

    founded: Founded
    ceremonies: Ceremonies
    version: int = 0

    @classmethod
    def of(cls, founded: Founded, database: Database) -> "Fleet":
        return cls(
            founded,
            Ceremonies(founded.images, founded.director, database, founded.clock),
        )

    def sign(self, *signers: str | Signer) -> list[str]:
        """Let people sign what waits for them, one after another; return what went into force."""
        in_force = []
        for signer in signers:
            held = self.founded.signers[signer] if isinstance(signer, str) else signer
            files = exchange.export(self.founded.images, self.founded.director)
            desk = exchange.lay_out(files)
            done = drafts.sign(desk.drafts, desk.held, [held])
            for name in sorted({name for name, _ in done}):
                if self.ceremonies.sign(name, drafts.payload_of(desk.drafts[name])):
                    in_force.append(name)
        return in_force

    def key_file(self, name: str, folder: Path) -> str:
        """Write a person's key to a file, and return its path."""
        path = folder / f"{name}.pem"
        keyfiles.write(path, self.founded.signers[name], name, None)
        return str(path)

    def release(self, *releases: tuple[str, int]) -> None:
        """Have exactly these releases listed."""
        self.founded.images.sync(dict(listed(model, number) for model, number in releases))

    def assignment(
        self, model: str, number: int, sequence: int, director: Director | None = None
    ) -> bytes:
        """Sign what the device is to run, under the hub's next version."""
        self.version += 1
        return (
            (director or self.founded.director)
            .sign("cam-1", sequence, self.version, [order(model, number, sequence)], 86_400.0)
            .payload
        )

    def device(self, folder: Path, run_client: Refresh = tufclient.refresh) -> "Device":
        """Enrol a device: it knows the first roots."""
        return Device(self, folder, run_client)


class Device:
    """The agent's trust state, fed by hand."""

    def __init__(self, fleet: Fleet, folder: Path, run_client: Refresh) -> None:
        self._fleet = fleet
        self.trust = Trust(
            folder,
            device="cam-1",
            board=BOARD,
            image_root=fleet.founded.images.root_1,
            director_root=fleet.founded.director.root_1,
            run_client=run_client,
        )

    def take(
        self, assignment: bytes, images: dict[str, bytes] | None = None
    ) -> Accepted | Waiting | None:
        """Give it what the broker retains, and let it judge."""
        self.trust.take_assignment(assignment)
        for role, data in (images or self._fleet.founded.images.metadata()).items():
            self.trust.take_image_role(role, data)
        return self.trust.judge(time.monotonic(), {})


def listed(model: str, number: int) -> tuple[str, ImageEntry]:
    target = ImageTarget(model, str(number), "onnx-fp32", number, "onnxruntime")
    return target_path(model, number, "onnx-fp32"), ImageEntry(100, DIGEST, target)


def order(model: str, number: int, attempt: int) -> DirectorEntry:
    target = DirectorTarget(model, str(number), "onnx-fp32", number, "onnxruntime", attempt)
    return DirectorEntry(target_path(model, number, "onnx-fp32"), 100, DIGEST, target)


def accepted(found: Accepted | Waiting | None) -> list[tuple[str, int]]:
    """Return model and release of what a device accepted."""
    assert isinstance(found, Accepted), found
    return [(target.slot.model, target.slot.release) for target in found.targets]


def keyid_of(director: Director, role: str) -> str:
    """Return the id of the director's online key of a role."""
    return director.held().director_root.signed.roles[role].keyids[0]
