"""The trust rules that hub and agent share: what the two repositories say, and when they agree.

Layout (Uptane on TUF, docs/adr/0003): the *image* repository says which bundles exist; the
*director* repository of a device says which of them it is to run. Both are plain TUF; what
edgefleet adds is in signed custom fields, typed here. TUF has checked signatures, expiry and
metadata versions before these rules are asked. The agent accepts an assigned target only if

1. the director's metadata names this very device,
2. its sequence is not below the highest that the device has accepted (the device's own counter,
   kept apart from TUF's files),
3. the image repository lists the same path with the same length and hashes,
4. both say the same model, version, variant, release and runtime,
5. the image allows this device's board,
6. the release is not below the highest that this device has confirmed for the model.

Going back to an older version is therefore a new, signed *release* of that version.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.messages import Count, Name

# Key of edgefleet's signed field in the director's targets role.
INSTRUCTIONS_FIELD = "edgefleet"
# Likewise in the image repository's top-level targets role.
FLEET_FIELD = "edgefleet"
Role = Literal["primary", "shadow", "split"]
Pems = Annotated[list[Annotated[str, Meta(max_length=8_000)]], Meta(max_length=8)]


class ImageTarget(Struct, frozen=True, omit_defaults=True):
    """Custom field of a target in the image repository.

    Attributes:
        release: counts releases of the model over its whole life; only ever grows.
        boards: that may run it; empty for all.
        provenance: digest of the signed statement of what the bundle was made of.
    """

    model: Name
    version: Name
    variant: Name
    release: Count
    runtime: Runtime
    boards: Annotated[list[Name], Meta(max_length=64)] = field(default_factory=list)
    provenance: Annotated[str, Meta(max_length=64)] = ""


class SamplePolicy(Struct, frozen=True, omit_defaults=True):
    """Which labelled rows a device may send, where its owner consents too.

    Attributes:
        per_window: at most so many rows of each window.
        strategy: `reservoir` (uniform) or `uncertain` (lowest top-class probability).
        per_day: at most so many rows in 24 hours; 0 for no further limit.
    """

    purpose: Name
    per_window: Annotated[int, Meta(ge=0, le=1000)]
    strategy: Literal["reservoir", "uncertain"] = "reservoir"
    per_day: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class DirectorTarget(Struct, frozen=True, omit_defaults=True):
    """Custom field of a target in a device's director repository.

    Attributes:
        attempt: grows with every order for this device, so that a retry is a new attempt.
        window_rows: rows in one report window.
        confirm_rows: rows that must be served without fault before a candidate is confirmed.
        confirm_deadline_s: a candidate not confirmed by then is rolled back. Whole seconds: TUF
            signs canonical JSON, which has no fractions.
        role: `primary` answers. A challenger beside it is tried on the same rows: as a `shadow`,
            whose answers nobody sees, or as a `split`, which answers `share_percent` of the calls.
            An assignment lists a model at most once as primary and once as challenger.
        share_percent: of the calls, for a `split`.
        max_bytes: that this attempt may receive; 0 leaves it to the device's own bounds.
        urgent: do not wait for the device's maintenance window.
    """

    model: Name
    version: Name
    variant: Name
    release: Count
    runtime: Runtime
    attempt: Count
    window_rows: Annotated[int, Meta(ge=1, le=10_000_000)] = 1000
    confirm_rows: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    confirm_deadline_s: Annotated[int, Meta(gt=0, le=30 * 86_400)] = 3600
    samples: SamplePolicy | None = None
    role: Role = "primary"
    share_percent: Annotated[int, Meta(ge=1, le=99)] = 50
    max_bytes: Count = 0
    urgent: bool = False


class Instructions(Struct, frozen=True):
    """Signed field of the director's targets role.

    Attributes:
        device: the one device that this is for.
        sequence: grows with every assignment of this device.
    """

    device: Name
    sequence: Count


class Fleet(Struct, frozen=True):
    """Signed field of the image repository's top-level targets role.

    Attributes:
        authorities: PEM certificates of the hub CAs that devices trust, the newest first.
        audit_keys: PEM public keys that sign the hub's log of decisions.
        builder_keys: PEM public keys that sign where bundles came from.
    """

    authorities: Pems = field(default_factory=list)
    audit_keys: Pems = field(default_factory=list)
    builder_keys: Pems = field(default_factory=list)


def target_path(model: str, release: int, variant: str) -> str:
    """Return the TUF target path of a bundle's manifest."""
    return f"{identifiers.model_name(model)}/r{release}/{identifiers.model_name(variant)}.json"


def read_custom(kind: type[Any], custom: object, what: str) -> Any:
    """Return signed custom data as a struct of this module.

    Raises:
        MalformedError: if it is absent or does not have the form of `kind`.
    """
    try:
        return msgspec.convert(custom, kind)
    except msgspec.ValidationError as error:
        raise MalformedError(f"{what}: signed fields cannot be read: {error}") from error


def check_instructions(instructions: Instructions, device: str, highest_sequence: int) -> None:
    """Apply rules 1 and 2.

    Raises:
        RefusedError: `wrong-device` or `rollback`.
    """
    if instructions.device != device:
        raise RefusedError(
            "wrong-device", f"assignment is for {instructions.device!r}; this is {device!r}"
        )
    if instructions.sequence < highest_sequence:
        raise RefusedError(
            "rollback",
            f"assignment {instructions.sequence} is older than {highest_sequence}, accepted before",
        )


def cross_check(
    *,
    path: str,
    director: DirectorTarget,
    director_length: int,
    director_hashes: Mapping[str, str],
    image: ImageTarget,
    image_length: int,
    image_hashes: Mapping[str, str],
    board: str,
    release_floor: int,
) -> None:
    """Apply rules 3 to 6 to one assigned target.

    Args:
        path: target path, for the error text.
        director: what the director says.
        director_length: bytes of the manifest, as the director says.
        director_hashes: algorithm → hexadecimal, as the director says.
        image: what the image repository says of the same path.
        image_length: likewise.
        image_hashes: likewise.
        board: of this device.
        release_floor: highest release of the model that this device has confirmed, else 0.

    Raises:
        RefusedError: `mix-and-match`, `incompatible-board` or `rollback`.
        MalformedError: if the hash is no SHA-256 digest.
    """
    if director_length != image_length or dict(director_hashes) != dict(image_hashes):
        raise RefusedError(
            "mix-and-match", f"{path}: director and image repository name different content"
        )
    if "sha256" not in image_hashes:
        raise RefusedError("mix-and-match", f"{path}: signed metadata gives no sha256 hash")
    # TUF bounds neither length nor form of a hash; here it becomes the name of a file.
    identifiers.digest(image_hashes["sha256"])
    for name in ("model", "version", "variant", "release", "runtime"):
        said, vouched = getattr(director, name), getattr(image, name)
        if said != vouched:
            raise RefusedError(
                "mix-and-match", f"{path}: director says {name} {said}, image says {vouched}"
            )
    if image.boards and board not in image.boards:
        raise RefusedError(
            "incompatible-board", f"{path}: made for {', '.join(image.boards)}; this is {board}"
        )
    if image.release < release_floor:
        raise RefusedError(
            "rollback",
            f"{path}: release {image.release} of {image.model} is older than {release_floor},"
            " confirmed before",
        )
