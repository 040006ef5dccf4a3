"""One device on one model version, over time: what is remembered, and how a look is judged.

A *look* is a run of windows of one device with at least `MIN_ROWS` rows together. Rules:

0. Times are the hub's (when a report came in): a device's clock may be wrong by years.
1. The first looks, until they hold `BASELINE_ROWS` rows, are the device's own baseline. A look in
   which the device is stuck is never a part of it.
2. Each look is compared with two references: the training profile ("the model sees new data") and
   the own baseline ("this device has changed"). A feature differs from a reference if the
   Benjamini-Hochberg procedure at `Q` over all devices and features says so *and* the effect (PSI
   on 16 bins less its null expectation) is over `MIN_EFFECT`. Rows of one device follow each other
   in time, and are not independent: three of them count as two for the expectation
   (`DESIGN_EFFECT`).
3. A feature that differs from both has *shifted*. One that differs from the profile by more than
   `HABIT_EFFECT`, and did so in the baseline already, is *unlike* the training data: a habit of
   the device, there from the start, and no drift. One that differs from the baseline alone has
   moved inside the range that the model was trained on; that is no alarm.
4. A feature is *stuck* if it hardly moves although it varies in training and moved in the baseline
   (or, where it never moved here, if more than `STUCK_SHARE` of all varying features stand still).
5. A feature is confirmed when 2 of the last 3 looks flag it, and stays so until none of them does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct, field

from edgefleet_cloud.monitoring import merge, statistics
from edgefleet_cloud.monitoring.merge import Packed, Profile, Sketch

MIN_ROWS = 500
BASELINE_ROWS = 1000
Q = 0.01
DESIGN_EFFECT = 1.5
MIN_EFFECT = 0.1
# The usual mark for a "major" change of a population (Siddiqi 2006).
HABIT_EFFECT = 0.25
STUCK_SHARE = 0.5
LOOKS = 3
CONFIRM = 2
# A device that has missed so many looks is silent, and no longer counts in shares of the fleet.
QUIET_LOOKS = 5
QUIET_EXTRA_S = 60.0


class Look(Struct, frozen=True):
    """What one look showed; features by their index."""

    start: float
    end: float
    shifted: list[int]
    unlike: list[int]
    stuck: list[int]


class Memory(Struct, frozen=True):
    """All that is remembered of a device on a version.

    Attributes:
        pending: windows that are not a look yet.
        baseline: rows of the first looks.
        latest: rows of the newest look.
        looks: the last `LOOKS`, oldest first.
    """

    pending: Packed | None = None
    baseline: Packed | None = None
    latest: Packed | None = None
    looks: list[Look] = field(default_factory=list)


class Flags(Struct, frozen=True):
    """What stands against a device now; features by their index.

    Attributes:
        shifted, unlike, stuck: confirmed features.
        suspects: shifted in the newest look and not confirmed yet.
        since: start of the earliest remembered look that flagged something.
        confirmed_at: end of the look that confirmed a shift.
        spacing_s: time between looks.
    """

    shifted: list[int]
    unlike: list[int]
    stuck: list[int]
    suspects: list[int]
    since: float
    confirmed_at: float
    spacing_s: float


@dataclass(frozen=True)
class Compared:
    """A look with its distances from both references, before multiple testing is looked at.

    Attributes:
        device: whose look.
        sketch: its rows.
        baseline: the device's own, None while it is being learned.
        p_profile, p_baseline: `(n_features,)` p-values, 1 without a baseline.
        effect_profile, effect_baseline: `(n_features,)`, 0 without a baseline.
        effect_habit: of the baseline against the profile (of the look, without a baseline).
    """

    device: str
    sketch: Sketch
    baseline: Sketch | None
    p_profile: statistics.Floats
    p_baseline: statistics.Floats
    effect_profile: statistics.Floats
    effect_baseline: statistics.Floats
    effect_habit: statistics.Floats


def take(
    memory: Memory, windows: Sequence[Sketch], profile: Profile
) -> tuple[Memory, list[Sketch]]:
    """Add windows to what is pending; return the looks that this completes, oldest first."""
    held = [merge.unpack(memory.pending, profile)] if memory.pending else []
    looks = []
    for window in windows:
        held.append(window)
        if sum(part.rows for part in held) >= MIN_ROWS:
            looks.append(merge.merge(held))
            held = []
    pending = merge.pack(merge.merge(held), profile) if held else None
    return msgspec.structs.replace(memory, pending=pending), looks


def compare(device: str, memory: Memory, sketch: Sketch, profile: Profile) -> Compared:
    """Measure how far a look is from both references."""
    p = statistics.p_values(sketch.counts, profile.counts)
    effect = statistics.effect(sketch.counts, profile.counts, DESIGN_EFFECT)
    if not has_baseline(memory):
        return Compared(device, sketch, None, p, np.ones_like(p), effect, np.zeros_like(p), effect)
    assert memory.baseline is not None  # `has_baseline` says so
    own = merge.unpack(memory.baseline, profile)
    return Compared(
        device,
        sketch,
        own,
        p,
        statistics.p_values(sketch.counts, own.counts),
        effect,
        statistics.effect(sketch.counts, own.counts, DESIGN_EFFECT),
        statistics.effect(own.counts, profile.counts, DESIGN_EFFECT),
    )


def judge(compared: Sequence[Compared], profile: Profile, devices: int) -> list[Look]:
    """Flag features in a batch of looks.

    Args:
        compared: the looks.
        profile: of the version.
        devices: that report on this version now; they make the family of tests.
    """
    if not compared:
        return []
    tests = max(devices, len(compared)) * len(profile.features)
    news = statistics.benjamini_hochberg(np.array([c.p_profile for c in compared]), Q, tests)
    moved = statistics.benjamini_hochberg(np.array([c.p_baseline for c in compared]), Q, tests)
    looks = []
    for look, new, change in zip(compared, news, moved, strict=True):
        unlike = new & (look.effect_profile > MIN_EFFECT)
        changed = change & (look.effect_baseline > MIN_EFFECT)
        stuck = _stuck(look, profile)
        shifted = unlike & changed & ~stuck
        usual = (look.effect_profile > HABIT_EFFECT) & (look.effect_habit > MIN_EFFECT)
        habit = unlike & ~changed & ~stuck & usual
        looks.append(
            Look(
                look.sketch.start,
                look.sketch.end,
                *(np.flatnonzero(flags).tolist() for flags in (shifted, habit, stuck)),
            )
        )
    return looks


def remember(memory: Memory, sketch: Sketch, look: Look, profile: Profile) -> Memory:
    """Return the memory with one more look."""
    baseline = memory.baseline
    if not has_baseline(memory) and not look.stuck:
        parts = [merge.unpack(baseline, profile)] if baseline else []
        baseline = merge.pack(merge.merge([*parts, sketch]), profile)
    return Memory(
        memory.pending,
        baseline,
        merge.pack(sketch, profile),
        [*memory.looks[1 - LOOKS :], look],
    )


def has_baseline(memory: Memory) -> bool:
    """Tell whether the device's own baseline is complete."""
    return memory.baseline is not None and memory.baseline.rows >= BASELINE_ROWS


def flags(memory: Memory, before: Flags | None) -> Flags | None:
    """Return what stands against the device after its newest look, None for nothing.

    Args:
        memory: with that look.
        before: what stood against it until then.
    """
    if not memory.looks:
        return None
    newest = memory.looks[-1]
    shifted = _confirmed([look.shifted for look in memory.looks], before.shifted if before else [])
    unlike = _confirmed([look.unlike for look in memory.looks], before.unlike if before else [])
    stuck = _confirmed([look.stuck for look in memory.looks], before.stuck if before else [])
    suspects = [index for index in newest.shifted if index not in shifted]
    if not (shifted or unlike or stuck or suspects):
        return None
    flagged = [look for look in memory.looks if look.shifted or look.unlike or look.stuck]
    since = flagged[0].start if flagged else newest.start
    known = before if before and (before.shifted or before.stuck) else None
    spacing = (newest.end - memory.looks[0].start) / len(memory.looks)
    return Flags(
        shifted,
        [index for index in unlike if index not in shifted],
        stuck,
        suspects,
        min(since, known.since) if known else since,
        known.confirmed_at if known and known.shifted else newest.end,
        spacing,
    )


def state(memory: Memory, found: Flags | None) -> str:
    """Return the one word for a device: learning | steady | unlike | shifted | stuck."""
    if found and found.stuck:
        return "stuck"
    if found and found.shifted:
        return "shifted"
    if not has_baseline(memory):
        return "learning"
    return "unlike" if found and found.unlike else "steady"


def quiet_after(memory: Memory) -> float:
    """Return the time from which on a device that says no more counts as silent.

    Args:
        memory: with at least one look.
    """
    newest = memory.looks[-1]
    spacing = (newest.end - memory.looks[0].start) / len(memory.looks)
    return newest.end + QUIET_LOOKS * spacing + QUIET_EXTRA_S


def _stuck(look: Compared, profile: Profile) -> statistics.Flags:
    candidates = statistics.varies(profile.counts, profile.moments)
    still = candidates & statistics.stands_still(
        look.sketch.counts, look.sketch.moments, profile.moments
    )
    if still.sum() > STUCK_SHARE * candidates.sum():
        return still
    if look.baseline is None:
        return np.zeros_like(still)
    moved_before = ~statistics.stands_still(
        look.baseline.counts, look.baseline.moments, profile.moments
    )
    return still & moved_before


def _confirmed(looks: Sequence[Sequence[int]], before: Sequence[int]) -> list[int]:
    seen = Counter(index for look in looks for index in look)
    kept = {index for index in before if seen[index]}
    return sorted(kept | {index for index, times in seen.items() if times >= CONFIRM})
