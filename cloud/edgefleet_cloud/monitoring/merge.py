"""Window reports → sketches that can be added up.

Rules:

1. A window is read with the reference profile of the version that it names, and with no other.
   One whose sketch does not fit that profile is malformed: the caller counts it and says so.
2. Merging counts is integer addition, so the order of reports changes nothing; moments merge by
   Chan's formula (`edgefleet_protocol.sketch`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

from msgspec import Struct

from edgefleet_cloud.storage import Store
from edgefleet_protocol import sketch
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.sketch import Counts, Feature, Layout, Moments


@dataclass(frozen=True)
class Profile:
    """A reference profile, with counts `(n_features, 68)` and moments `(n_features, 5)`."""

    digest: str
    features: list[Feature]
    counts: Counts
    moments: Moments

    @cached_property
    def layout(self) -> Layout:
        """The bins, prepared for packing and unpacking many sketches."""
        return Layout(self.features)

    @property
    def names(self) -> list[str]:
        """Names of the features, in column order."""
        return [feature.name for feature in self.features]


@dataclass(frozen=True)
class Sketch:
    """Counts and moments of some rows.

    Attributes:
        start, end: of the time that the rows cover, Unix seconds.
        rows: how many.
        counts: `(n_features, 68)` int64.
        moments: `(n_features, 5)` float64.
    """

    start: float
    end: float
    rows: int
    counts: Counts
    moments: Moments


class Packed(Struct, frozen=True):
    """A sketch as it is kept in the database."""

    start: float
    end: float
    rows: int
    counts: bytes
    moments: bytes


def read_profile(digest: str, data: bytes) -> Profile:
    """Unpack a bundle's `reference` file.

    Raises:
        ProtocolError: if it is not a reference profile.
    """
    held = sketch.decode_profile(data)
    return Profile(
        digest,
        held.features,
        sketch.unpack_counts(held.counts, held.features),
        sketch.unpack_moments(held.moments, len(held.features)),
    )


class Profiles:
    """Reference profiles of a store, each read once.

    Args:
        store: holds them by digest.
        limit: so many are kept; the oldest goes first.
    """

    def __init__(self, store: Store, limit: int = 32) -> None:
        self._store = store
        self._limit = limit
        self._held: dict[str, Profile] = {}

    def get(self, digest: str) -> Profile:
        """Return one profile.

        Raises:
            NotFoundError: if the store does not have it.
            DamagedError: if its content differs from its name.
            ProtocolError: if it is not a reference profile.
        """
        held = self._held.pop(digest, None) or read_profile(digest, self._store.read(digest))
        self._held[digest] = held
        if len(self._held) > self._limit:
            del self._held[next(iter(self._held))]
        return held


def decode(
    profile: Profile,
    *,
    reference: str,
    start: float,
    end: float,
    rows: int,
    counts: bytes,
    moments: bytes,
) -> Sketch:
    """Read the sketch of one window.

    Args:
        profile: of the version that the window names.
        reference: digest of the profile that the device says it has used.
        start: of the window, Unix seconds; not after `end`.
        end: likewise.
        rows: of the window.
        counts: as packed by the device.
        moments: likewise.

    Raises:
        MalformedError: another profile, a sketch of another shape, or counts that do not add up to
            the rows of the window.
    """
    if reference != profile.digest:
        raise MalformedError(
            f"window counted into profile {reference[:12]}; its version has {profile.digest[:12]}"
        )
    if end < start:
        raise MalformedError(f"window ends {start - end:.3f} s before it starts")
    read = Sketch(
        start,
        end,
        rows,
        profile.layout.unpack(counts),
        sketch.unpack_moments(moments, len(profile.features)),
    )
    for feature, total in zip(profile.features, read.counts.sum(axis=1), strict=True):
        if total != rows:
            raise MalformedError(f"feature {feature.name!r} counts {total} of {rows} rows")
    return read


def merge(parts: Sequence[Sketch]) -> Sketch:
    """Return the sketch of all rows together; at least one part, in any order."""
    return reduce(_merge_two, parts)


def pack(held: Sketch, profile: Profile) -> Packed:
    """Return `held` in the form for the database."""
    return Packed(
        held.start,
        held.end,
        held.rows,
        profile.layout.pack(held.counts),
        sketch.pack_moments(held.moments),
    )


def unpack(packed: Packed, profile: Profile) -> Sketch:
    """Read what `pack` gave.

    Raises:
        MalformedError: if it does not fit the profile.
    """
    return Sketch(
        packed.start,
        packed.end,
        packed.rows,
        profile.layout.unpack(packed.counts),
        sketch.unpack_moments(packed.moments, len(profile.features)),
    )


def _merge_two(left: Sketch, right: Sketch) -> Sketch:
    return Sketch(
        min(left.start, right.start),
        max(left.end, right.end),
        left.rows + right.rows,
        left.counts + right.counts,
        sketch.merge_moments(left.moments, right.moments),
    )
