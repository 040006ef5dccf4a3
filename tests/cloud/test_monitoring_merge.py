"""Sketches of windows: read with their profile, and added up in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_cloud.errors import DamagedError, NotFoundError
from edgefleet_cloud.monitoring import merge
from edgefleet_cloud.monitoring.merge import Profile, Sketch
from edgefleet_cloud.storage import Store
from edgefleet_protocol import sketch
from edgefleet_protocol.errors import MalformedError

RNG = np.random.default_rng(1)
TRAINING = RNG.normal(size=(400, 3))
FEATURES = [sketch.numeric_feature(f"x{i}", TRAINING[:, i]) for i in range(3)]
PROFILE = Profile(
    "a" * 64, FEATURES, sketch.count_rows(FEATURES, TRAINING), sketch.moments_of(TRAINING)
)


def sketched(rows: np.ndarray, at: float = 0.0) -> Sketch:
    return Sketch(at, at + 1, len(rows), sketch.count_rows(FEATURES, rows), sketch.moments_of(rows))


def window(values: np.ndarray, **changes) -> dict:
    return {
        "reference": PROFILE.digest,
        "start": 10.0,
        "end": 20.0,
        "rows": len(values),
        "counts": sketch.pack_counts(sketch.count_rows(FEATURES, values), FEATURES),
        "moments": sketch.pack_moments(sketch.moments_of(values)),
    } | changes


@settings(max_examples=50)
@given(st.integers(1, 6), st.randoms())
def test_the_order_of_reports_changes_nothing(parts: int, random) -> None:
    rows = RNG.normal(size=(120, 3))
    pieces = [sketched(piece, float(i)) for i, piece in enumerate(np.array_split(rows, parts))]
    whole = merge.merge(pieces)
    random.shuffle(pieces)
    shuffled = merge.merge(pieces)
    assert (whole.counts == shuffled.counts).all()
    assert (whole.counts == sketch.count_rows(FEATURES, rows)).all()
    np.testing.assert_allclose(whole.moments, sketch.moments_of(rows), rtol=1e-9)
    np.testing.assert_allclose(whole.moments, shuffled.moments, rtol=1e-9)
    assert (whole.start, whole.end, whole.rows) == (0.0, float(parts), 120)


def test_a_window_is_read_as_it_was_sent() -> None:
    rows = RNG.normal(size=(50, 3))
    read = merge.decode(PROFILE, **window(rows))
    assert (read.counts == sketch.count_rows(FEATURES, rows)).all()
    assert (read.start, read.end, read.rows) == (10.0, 20.0, 50)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reference": "b" * 64}, "window counted into profile bbbbbbbbbbbb"),
        ({"rows": 51}, "feature 'x0' counts 50 of 51 rows"),
        ({"counts": b"\x01\x00"}, "sketch of 2 bytes"),
        ({"moments": b""}, "moments of 0 bytes"),
        ({"end": 9.0}, "ends 1.000 s before it starts"),
    ],
)
def test_a_window_that_does_not_fit_its_profile_is_malformed(changes: dict, text: str) -> None:
    with pytest.raises(MalformedError, match=text):
        merge.decode(PROFILE, **window(RNG.normal(size=(50, 3)), **changes))


def test_packing_keeps_a_sketch() -> None:
    held = sketched(RNG.normal(size=(70, 3)))
    again = merge.unpack(merge.pack(held, PROFILE), PROFILE)
    assert (again.counts == held.counts).all()
    assert (again.moments == held.moments).all()


def test_profiles_are_read_once_and_the_oldest_goes_first(store: Store) -> None:
    digests = [
        store.put(
            sketch.encode_profile(
                sketch.ReferenceProfile(
                    400 + i,
                    FEATURES,
                    sketch.pack_counts(PROFILE.counts, FEATURES),
                    sketch.pack_moments(PROFILE.moments),
                )
            )
        )
        for i in range(3)
    ]
    profiles = merge.Profiles(store, limit=2)
    first = profiles.get(digests[0])
    assert profiles.get(digests[0]) is first
    assert (first.counts == PROFILE.counts).all()
    profiles.get(digests[1])
    profiles.get(digests[2])
    assert profiles.get(digests[0]) is not first


def test_an_unreadable_profile_is_no_profile(store: Store) -> None:
    profiles = merge.Profiles(store)
    with pytest.raises(NotFoundError):
        profiles.get("0" * 64)
    digest = store.put(b"no profile")
    with pytest.raises(MalformedError):
        profiles.get(digest)
    store.path(digest).write_bytes(b"changed")
    with pytest.raises(DamagedError):
        profiles.get(digest)
