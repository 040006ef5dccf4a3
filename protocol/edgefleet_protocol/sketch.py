"""Mergeable sketches of a model's inputs: 64 bins a feature on the training quantiles.

A *reference profile* travels in the bundle: for every feature the bin edges and the training
counts. A device counts its rows into the same bins. Rules:

1. Merging counts is integer addition: exact, in any order. Moments merge by Chan's formula in
   float64 (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance").
2. Edges are training quantiles with ties removed, so a feature may have fewer than 64 bins.
3. Only sketches with the same reference digest may be merged.

Count layout, one row a feature, `(n_features, 68)` int64: column 0 under-range, 1 to 64 the bins
(categories for a categorical feature), 65 over-range (or a category that is not in the
vocabulary), 66 missing (NaN), 67 infinite. A value equal to the last edge falls in the last bin.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from edgefleet_protocol.errors import MalformedError, TooLargeError

VERSION = 1
MAX_BINS = 64
COLUMNS = MAX_BINS + 4
UNDER, OVER, MISSING, INFINITE = 0, MAX_BINS + 1, MAX_BINS + 2, MAX_BINS + 3
CONFIDENCE_BINS = 16
MAX_FEATURES = 4096
MAX_PROFILE_BYTES = 16 * 1024 * 1024

Counts = NDArray[np.int64]
Moments = NDArray[np.float64]
Label = Annotated[str, Meta(max_length=200)]


class Feature(Struct, frozen=True, omit_defaults=True):
    """How one feature is counted.

    Attributes:
        edges: numeric: ascending, 2 to 65 of them; empty for a feature with no finite training
            value. A constant feature has two equal edges.
        vocabulary: categorical: at most 64 known categories.
    """

    name: Label
    kind: Literal["numeric", "categorical"] = "numeric"
    edges: Annotated[list[float], Meta(max_length=MAX_BINS + 1)] = field(default_factory=list)
    vocabulary: Annotated[list[Label], Meta(max_length=MAX_BINS)] = field(default_factory=list)

    @property
    def bins(self) -> int:
        """Number of bins in use, at most 64."""
        if self.kind == "categorical":
            return len(self.vocabulary)
        return max(len(self.edges) - 1, 0)


class ReferenceProfile(Struct, frozen=True, omit_defaults=True):
    """The training profile of one model version.

    Attributes:
        rows: training rows counted.
        counts: `pack_counts` of the training rows.
        moments: `pack_moments` of the training rows.
        classes: predicted labels counted in `predictions` (classification).
        predictions: training predictions per class.
        confidences: training predictions per 1/16 of top-class probability.
    """

    rows: int
    features: Annotated[list[Feature], Meta(max_length=MAX_FEATURES)]
    counts: bytes
    moments: bytes
    classes: Annotated[list[Label], Meta(max_length=1024)] = field(default_factory=list)
    predictions: Annotated[list[int], Meta(max_length=1024)] = field(default_factory=list)
    confidences: Annotated[list[int], Meta(max_length=CONFIDENCE_BINS)] = field(
        default_factory=list
    )
    version: int = VERSION


def encode_profile(profile: ReferenceProfile) -> bytes:
    """Return the profile as the bytes of a bundle's `reference` file."""
    return msgspec.msgpack.encode(profile)


def decode_profile(data: bytes) -> ReferenceProfile:
    """Read and check a profile.

    Raises:
        TooLargeError: over 16 MiB.
        MalformedError: not a profile of version 1, or its parts do not fit one another.
    """
    if len(data) > MAX_PROFILE_BYTES:
        raise TooLargeError("reference profile", len(data), MAX_PROFILE_BYTES)
    try:
        profile = msgspec.msgpack.decode(data, type=ReferenceProfile)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"not a reference profile: {error}") from error
    if profile.version != VERSION:
        raise MalformedError(f"reference profile version {profile.version}: expected {VERSION}")
    for feature in profile.features:
        edges = np.asarray(feature.edges)
        if feature.kind == "numeric" and (
            len(edges) == 1 or not np.isfinite(edges).all() or (np.diff(edges) < 0).any()
        ):
            raise MalformedError(f"feature {feature.name!r}: edges must be finite and ascending")
    unpack_counts(profile.counts, profile.features)
    unpack_moments(profile.moments, len(profile.features))
    return profile


def numeric_feature(name: str, values: NDArray[np.floating]) -> Feature:
    """Return the bins of a numeric feature from its training values.

    Args:
        name: of the feature.
        values: `(n,)` float; NaN and infinities are left out of the quantiles.
    """
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if finite.size == 0:
        return Feature(name)
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, MAX_BINS + 1)))
    if edges.size == 1:
        edges = np.repeat(edges, 2)
    return Feature(name, edges=[float(edge) for edge in edges])


class Layout:
    """The bins of a reference profile, prepared for counting and packing many times.

    Args:
        features: as in the reference profile, in column order.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.n_features = len(features)
        # One row a feature, padded with its last edge to 65: then a value that is over the range
        # is found at 65, whatever the number of bins. The last edge moves up by one step of
        # float64, so that a value equal to it stays in the last bin.
        self._edges = [_padded_edges(feature) for feature in features]
        self._categorical = [i for i, f in enumerate(features) if f.kind == "categorical"]
        self._offsets = np.arange(len(features))[:, None] * COLUMNS
        used = np.zeros((len(features), COLUMNS), np.bool_)
        for row, feature in zip(used, features, strict=True):
            row[: feature.bins + 1] = row[OVER:] = True
        self._used = used

    def count(self, rows: NDArray[np.floating]) -> Counts:
        """Count rows into the bins.

        Args:
            rows: `(n, n_features)` float32 or float64. A categorical feature holds the index of
                its category in the vocabulary, any other number for an unknown one, NaN for a
                missing one.

        Returns:
            `(n_features, 68)` int64.
        """
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise MalformedError(f"rows of shape {rows.shape}: expected (n, {self.n_features})")
        columns = np.ascontiguousarray(rows.T, np.float64)
        index = np.empty(columns.shape, np.int64)
        for feature, edges in enumerate(self._edges):
            index[feature] = edges.searchsorted(columns[feature], side="right")
        for feature in self._categorical:
            index[feature][index[feature] == UNDER] = OVER
        finite = np.isfinite(columns)
        if not finite.all():
            index[~finite] = np.where(np.isnan(columns[~finite]), MISSING, INFINITE)
        index += self._offsets
        flat = np.bincount(index.ravel(), minlength=self.n_features * COLUMNS)
        return flat.reshape(self.n_features, COLUMNS).astype(np.int64, copy=False)

    def pack(self, counts: Counts) -> bytes:
        """Return a width byte (1, 2, 4 or 8) and the columns in use, little-endian."""
        used = counts[self._used]
        largest = int(used.max(initial=0))
        width = next(width for width in (1, 2, 4, 8) if largest < 1 << 8 * width)
        return bytes([width]) + used.astype(f"<u{width}").tobytes()

    def unpack(self, data: bytes) -> Counts:
        """Return `(n_features, 68)` int64 from `pack`.

        Raises:
            MalformedError: if the length does not fit the features.
        """
        width = data[0] if data else 0
        expected = int(self._used.sum())
        if width not in (1, 2, 4, 8) or len(data) != 1 + width * expected:
            raise MalformedError(
                f"sketch of {len(data)} bytes, width {width}: expected {expected} counts"
            )
        flat = np.frombuffer(data, f"<u{width}", offset=1).astype(np.int64)
        if flat.size and flat.min() < 0:
            raise MalformedError("sketch holds a count over 2^63")
        counts = np.zeros(self._used.shape, np.int64)
        counts[self._used] = flat
        return counts


def count_rows(features: Sequence[Feature], rows: NDArray[np.floating]) -> Counts:
    """Count rows once; see `Layout.count`."""
    return Layout(features).count(np.asarray(rows))


def pack_counts(counts: Counts, features: Sequence[Feature]) -> bytes:
    """Pack counts once; see `Layout.pack`."""
    return Layout(features).pack(counts)


def unpack_counts(data: bytes, features: Sequence[Feature]) -> Counts:
    """Unpack counts once; see `Layout.unpack`."""
    return Layout(features).unpack(data)


def _padded_edges(feature: Feature) -> NDArray[np.float64]:
    if feature.kind == "categorical":
        edges = np.arange(len(feature.vocabulary) + 1, dtype=np.float64)
    elif feature.edges:
        edges = np.array(feature.edges)
        edges[-1] = np.nextafter(edges[-1], np.inf)
    else:
        edges = np.array([-np.inf])
    return np.pad(edges, (0, MAX_BINS + 1 - len(edges)), mode="edge")


def moments_of(rows: NDArray[np.floating]) -> Moments:
    """Return n, mean, sum of squared deviations (M2), min and max of each column's finite values.

    Args:
        rows: `(n, n_features)` float.

    Returns:
        `(n_features, 5)` float64; mean and M2 are 0, min is inf and max is -inf where n is 0.
    """
    rows = np.asarray(rows, np.float64)
    finite = np.isfinite(rows)
    n = finite.sum(axis=0)
    held = np.where(finite, rows, 0.0)
    mean = held.sum(axis=0) / np.maximum(n, 1)
    m2 = (np.where(finite, rows - mean, 0.0) ** 2).sum(axis=0)
    low = np.where(finite, rows, np.inf).min(axis=0, initial=np.inf)
    high = np.where(finite, rows, -np.inf).max(axis=0, initial=-np.inf)
    return np.stack([n.astype(np.float64), mean, m2, low, high], axis=1)


def merge_moments(left: Moments, right: Moments) -> Moments:
    """Return the moments of both samples together: Chan's pairwise update, in float64."""
    n = left[:, 0] + right[:, 0]
    safe = np.maximum(n, 1)
    delta = right[:, 1] - left[:, 1]
    mean = np.where(
        left[:, 0] == 0,
        right[:, 1],
        np.where(right[:, 0] == 0, left[:, 1], left[:, 1] + delta * right[:, 0] / safe),
    )
    m2 = left[:, 2] + right[:, 2] + delta**2 * left[:, 0] * right[:, 0] / safe
    low = np.minimum(left[:, 3], right[:, 3])
    high = np.maximum(left[:, 4], right[:, 4])
    return np.stack([n, mean, m2, low, high], axis=1)


def pack_moments(moments: Moments) -> bytes:
    """Return the moments as little-endian float64, `(n_features, 5)`."""
    return moments.astype("<f8").tobytes()


def unpack_moments(data: bytes, n_features: int) -> Moments:
    """Return `(n_features, 5)` float64 from `pack_moments`.

    Raises:
        MalformedError: wrong length, a negative n or M2, or a mean that is not finite.
    """
    if len(data) != n_features * 40:
        raise MalformedError(f"moments of {len(data)} bytes: expected {n_features * 40}")
    moments = np.frombuffer(data, "<f8").reshape(n_features, 5).astype(np.float64)
    if not np.isfinite(moments[:, :3]).all() or (moments[:, [0, 2]] < 0).any():
        raise MalformedError("moments hold a negative or non-finite n, mean or M2")
    return moments


def confidence_bin(probability: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the index of the 1/16 into which each top-class probability falls."""
    clipped = np.fmin(np.fmax(probability, 0.0), 1.0)  # these two take NaN for no value: 0
    index: NDArray[np.int64] = np.minimum(
        (clipped * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1
    )
    return index
