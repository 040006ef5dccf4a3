"""The demo's data: honest splits, and the changes that it says it makes."""

import csv
from pathlib import Path

import numpy as np
import pytest

from demo import world
from demo.__main__ import shortfalls


def test_no_row_serves_twice() -> None:
    data = world.load()
    parts = [data.lab, data.field_first, data.field_second]
    assert sum(len(part.labels) for part in parts) == 1797
    assert len(np.unique(np.concatenate([part.pixels for part in parts]), axis=0)) == 1797


def test_the_new_light_takes_contrast_and_keeps_the_labels() -> None:
    rows = world.load().field_first
    dim = world.under_new_light(rows, 3)
    assert np.array_equal(dim.labels, np.repeat(rows.labels, world.REPEATS))
    assert dim.pixels.std() < 0.6 * rows.pixels.std()
    assert dim.pixels.min() >= 0
    assert dim.pixels.max() <= 16
    assert not np.array_equal(dim.pixels, world.under_new_light(rows, 4).pixels)


def test_a_stuck_camera_sees_one_image() -> None:
    frozen = world.stuck(world.load().field_first)
    assert (frozen.pixels == frozen.pixels[0]).all()
    assert len(np.unique(frozen.labels)) == 10


def test_a_replay_file_has_its_labels(tmp_path: Path) -> None:
    rows = world.load().lab
    world.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [int(line["digit"]) for line in read] == rows.labels.tolist()
    assert [float(read[5][name]) for name in world.COLUMNS] == rows.pixels[5].tolist()


GOOD = {
    "drift": {
        "fleet_detected": True,
        "fleet_false_alarm_before_shift": False,
        "stuck_device": "cam-09",
        "stuck_device_named": "cam-09",
    },
    "accuracy": {"v1_after_shift": 0.75, "v2_after_shift": 0.80},
    "rollouts": [
        {"version": "1", "outcome": "completed"},
        {"version": "2", "outcome": "completed"},
        {"version": "3", "outcome": "rolled_back"},
    ],
    "refused": [{}, {}],
}


def test_a_run_that_shows_everything_has_no_shortfall() -> None:
    assert shortfalls(GOOD) == []


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("drift", {**GOOD["drift"], "fleet_detected": False}),
        ("drift", {**GOOD["drift"], "fleet_false_alarm_before_shift": True}),
        ("drift", {**GOOD["drift"], "stuck_device_named": None}),
        ("accuracy", {"v1_after_shift": 0.75, "v2_after_shift": 0.79}),
        ("rollouts", GOOD["rollouts"][:2]),
        ("refused", [{}]),
    ],
)
def test_anything_that_was_not_shown_is_a_shortfall(part: str, value: object) -> None:
    assert len(shortfalls({**GOOD, part: value})) == 1
