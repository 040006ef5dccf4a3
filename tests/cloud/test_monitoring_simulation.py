"""Twelve cameras on scikit-learn's digits: no drift, drift of the fleet, and one stuck camera.

The reference is 900 training rows. Devices replay windows of 500 rows from a pool of only 448
held-out images, so neighbouring windows share most of their rows, and the pool differs from the
training rows by accident: what a test on independent rows would take for drift.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from edgefleet_cloud.monitoring import merge, verdict, watch
from edgefleet_cloud.monitoring.merge import Profile, Sketch
from edgefleet_cloud.monitoring.verdict import Finding
from edgefleet_protocol import sketch

Rows = NDArray[np.float64]
DEVICES = [f"cam-{index:02}" for index in range(12)]
WINDOW_S = 5.0


def blurred(rows: Rows) -> Rows:
    images = np.pad(rows.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = (images[:, :-2] + 2 * images[:, 1:-1] + images[:, 2:]) / 4
    return ((across[:, :, :-2] + 2 * across[:, :, 1:-1] + across[:, :, 2:]) / 4).reshape(-1, 64)


CHANGES: dict[str, Callable[[Rows, np.random.Generator], Rows]] = {
    "contrast": lambda rows, _: np.round(rows * 0.6),
    "blur": lambda rows, _: np.round(blurred(rows)),
    "noise": lambda rows, rng: np.clip(np.round(rows + rng.normal(0, 2, rows.shape)), 0, 16),
}


class Cameras:
    """The cameras' pool of images, and what the hub remembers of them."""

    def __init__(self, seed: int, labels: dict[str, dict[str, str]] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        pixels = load_digits().data
        pixels = pixels[self.rng.permutation(len(pixels))]
        training, self.pool = pixels[:900], pixels[900:1348]
        features = [sketch.numeric_feature(f"p{i}", training[:, i]) for i in range(64)]
        self.profile = Profile(
            "0" * 64, features, sketch.count_rows(features, training), sketch.moments_of(training)
        )
        self.memories = dict.fromkeys(DEVICES, watch.Memory())
        self.flags: dict[str, watch.Flags | None] = dict.fromkeys(DEVICES)
        self.labels = labels or {}
        self.now = 0.0

    def window(self, size: int = 500) -> Rows:
        return self.pool[self.rng.integers(0, len(self.pool), size)]

    def round(self, change: Callable[[str, Rows], Rows] = lambda _, rows: rows) -> list[Finding]:
        """Let every camera send a window, one after the other; return what the hub finds then."""
        findings: list[Finding] = []
        for index, device in enumerate(DEVICES):
            rows = change(device, self.window())
            at = self.now + index * WINDOW_S / len(DEVICES)
            self.take(device, self.sketch(rows, at))
            findings = verdict.judge(self.views(), self.profile)
        self.now += WINDOW_S
        return findings

    def sketch(self, rows: Rows, at: float) -> Sketch:
        counts = self.profile.layout.count(rows)
        return Sketch(at - WINDOW_S, at, len(rows), counts, sketch.moments_of(rows))

    def take(self, device: str, window: Sketch) -> None:
        memory, looks = watch.take(self.memories[device], [window], self.profile)
        for look in looks:
            compared = watch.compare(device, memory, look, self.profile)
            (judged,) = watch.judge([compared], self.profile, len(DEVICES))
            memory = watch.remember(memory, look, judged, self.profile)
            self.flags[device] = watch.flags(memory, self.flags[device])
        self.memories[device] = memory

    def views(self) -> list[verdict.View]:
        return [
            verdict.View(
                device,
                self.labels.get(device, {}),
                watch.has_baseline(memory),
                self.flags[device],
                memory.looks[-1].end,
                merge.unpack(memory.latest, self.profile)
                if memory.latest and self.flags[device]
                else None,
            )
            for device, memory in self.memories.items()
            if memory.looks
        ]


def found(findings: list[Finding]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(f.scope, f.kind, tuple(f.devices)) for f in findings}


def settle(cameras: Cameras, rounds: int = 4) -> None:
    for _ in range(rounds):
        assert cameras.round() == []


@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_rounds_without_drift_raise_no_alarm(seed: int) -> None:
    cameras = Cameras(seed)
    settle(cameras, 20)


@pytest.mark.parametrize("kind", [*CHANGES, "each its own"])
def test_a_changed_world_and_a_stuck_camera_are_told_apart_within_three_windows(kind: str) -> None:
    cameras = Cameras(3)
    settle(cameras)
    changed, stuck = DEVICES[:8], DEVICES[11]

    def change(device: str, rows: Rows) -> Rows:
        if device == stuck:
            return np.repeat(rows[:1], len(rows), axis=0)
        if device not in changed:
            return rows
        own = list(CHANGES)[changed.index(device) % 3] if kind == "each its own" else kind
        return CHANGES[own](rows, cameras.rng)

    seen = [found(cameras.round(change)) for _ in range(3)]
    expected = {("fleet", "shift", tuple(changed)), ("device", "stuck", (stuck,))}
    assert seen[0] == set()
    assert expected <= seen[2]
    # Nobody else is ever named, not even while the first of many report.
    assert seen[1] | seen[2] <= {*expected, ("fleet", "shift", tuple(changed[:7]))}


@pytest.mark.parametrize(
    ("count", "scope", "label"), [(1, "device", ""), (3, "cohort", "site=north")]
)
def test_one_changed_camera_is_a_device_and_three_are_a_cohort_named_by_their_label(
    count: int, scope: str, label: str
) -> None:
    site = {device: {"site": "north" if device < "cam-03" else "south"} for device in DEVICES}
    members = DEVICES[:count]
    cameras = Cameras(4, site)
    settle(cameras)

    def change(device: str, rows: Rows) -> Rows:
        return CHANGES["contrast"](rows, cameras.rng) if device in members else rows

    for _ in range(4):
        findings = cameras.round(change)
    assert found(findings) == {(scope, "shift", tuple(members))}
    assert findings[0].label == label


def test_a_camera_unlike_the_other_changed_ones_is_named_beside_the_fleet() -> None:
    cameras = Cameras(5)
    settle(cameras)
    odd = DEVICES[7]

    def change(device: str, rows: Rows) -> Rows:
        if device == odd:
            return np.clip(rows * 3, 0, 16)
        return CHANGES["contrast"](rows, cameras.rng) if device in DEVICES[:8] else rows

    for _ in range(3):
        findings = cameras.round(change)
    assert found(findings) == {
        ("fleet", "shift", tuple(DEVICES[:7])),
        ("device", "apart", (odd,)),
    }


def test_what_was_unlike_training_from_the_start_is_a_habit_and_no_drift() -> None:
    cameras = Cameras(6)
    dark = DEVICES[:8]

    def change(device: str, rows: Rows) -> Rows:
        return CHANGES["contrast"](rows, cameras.rng) if device in dark else rows

    findings: list[Finding] = []
    for _ in range(6):
        findings = cameras.round(change)
    assert found(findings) == {("fleet", "unlike-training", tuple(dark))}
    assert verdict.scope_of(findings) == "none"


def test_drift_that_ends_is_forgotten_after_three_clean_looks() -> None:
    cameras = Cameras(7)
    settle(cameras)
    for _ in range(3):
        findings = cameras.round(lambda _, rows: CHANGES["contrast"](rows, cameras.rng))
    assert verdict.scope_of(findings) == "fleet"
    for _ in range(3):
        findings = cameras.round()
    assert findings == []


def test_a_camera_that_was_stuck_from_the_start_is_named_and_learns_nothing() -> None:
    cameras = Cameras(8)
    for _ in range(4):
        findings = cameras.round(
            lambda device, rows: (
                np.repeat(rows[:1], len(rows), axis=0) if device == DEVICES[5] else rows
            )
        )
    assert found(findings) == {("device", "stuck", (DEVICES[5],))}
    assert not watch.has_baseline(cameras.memories[DEVICES[5]])


def test_short_windows_are_judged_once_they_hold_five_hundred_rows_together() -> None:
    cameras = Cameras(9)
    memory = watch.Memory()
    ends = []
    for index in range(6):
        part = cameras.sketch(cameras.window(249), index * WINDOW_S)
        memory, looks = watch.take(memory, [part], cameras.profile)
        ends += [(look.rows, look.start, look.end) for look in looks]
    assert ends == [(747, -5.0, 10.0), (747, 10.0, 25.0)]
    exact = cameras.sketch(cameras.window(500), 40.0)
    assert len(watch.take(watch.Memory(), [exact], cameras.profile)[1]) == 1
    less = cameras.sketch(cameras.window(499), 40.0)
    assert watch.take(watch.Memory(), [less], cameras.profile)[1] == []
