"""Health figures: from this kernel, and from folders that look like other boards'."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.operating import health
from edgefleet_agent.operating.health import HealthMeter
from edgefleet_agent.testing import Clock

FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def test_this_machine_tells_its_figures(tmp_path: Path) -> None:
    found = HealthMeter(tmp_path, Clock()).read()
    assert found.memory_bytes is not None
    assert 10 << 20 < found.memory_bytes < 10 << 30
    assert found.memory_free_bytes is not None
    assert 0 < found.memory_free_bytes < health.total_memory_bytes()
    assert found.disk_free_bytes == pytest.approx(os.statvfs(tmp_path).f_bavail * 4096, rel=0.5)
    assert found.uptime_s is not None
    assert found.uptime_s > 0
    assert found.clock_offset_s is None
    assert health.resident_bytes(os.getpid()) == pytest.approx(found.memory_bytes, rel=0.1)


def test_a_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    assert health.resident_bytes(12345, proc=tmp_path) is None


def test_cpu_use_is_that_between_two_readings(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", {"stat": "cpu 100 0 100 700 100 0 0 0 0 0\ncpu0 1\n"})
    meter = HealthMeter(tmp_path, Clock(), proc=proc, sys=tmp_path / "sys")
    tree(proc, {"stat": "cpu 120 0 110 750 120 0 0 0 0 0\n"})
    assert meter.read().cpu_percent == 30.0  # 30 busy of 100 ticks; waiting for the disk is idle
    assert meter.read().cpu_percent is None  # no tick since


def test_a_board_without_any_file_gives_none_for_each(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    found = HealthMeter(nowhere, Clock(), proc=nowhere, sys=nowhere).read(reports_dropped=3)
    assert found == health.Health(reports_dropped=3)
    assert health.total_memory_bytes(nowhere) == 0


@given(st.text(max_size=80))
def test_nonsense_from_the_kernel_is_no_figure_and_no_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("board")
    text = text.replace("\0", "")
    names = ["stat", "meminfo", "uptime", "self/statm"]
    proc = tree(root / "proc", dict.fromkeys(names, text))
    sys = tree(root / "sys", {FIRMWARE: text, "class/thermal/thermal_zone0/temp": text})
    HealthMeter(root, Clock(), proc=proc, sys=sys).read()


def test_the_hottest_sane_sensor_counts(tmp_path: Path) -> None:
    sys = tree(
        tmp_path,
        {
            "class/thermal/thermal_zone0/temp": "48312\n",
            "class/thermal/thermal_zone1/temp": "-274000\n",
            "class/hwmon/hwmon0/temp1_input": "51000\n",
            "class/hwmon/hwmon1/temp1_input": "255000\n",
        },
    )
    assert health.hottest_c(sys) == 51.0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({FIRMWARE: "0\n"}, False),
        ({FIRMWARE: "50000\n"}, True),  # under-voltage and throttling since boot
        ({FIRMWARE: "2\n"}, True),  # the clock is capped now
        ({FIRMWARE: "10\n"}, False),  # a bit without a meaning
        ({FIRMWARE: "?\n"}, None),
        (
            {
                "class/hwmon/hwmon2/name": "rpi_volt\n",
                "class/hwmon/hwmon2/in0_lcrit_alarm": "1\n",
            },
            True,
        ),
        ({"devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0\n"}, False),
        ({"devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "7\n"}, True),
        (
            {
                "class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
                "class/thermal/cooling_device0/cur_state": "2\n",
            },
            True,
        ),
        (
            {
                "class/thermal/cooling_device0/type": "pwm-fan\n",
                "class/thermal/cooling_device0/cur_state": "2\n",
            },
            None,
        ),
    ],
)
def test_throttling_is_told_where_the_board_can_tell(
    tmp_path: Path, files: dict[str, str], expected: bool | None
) -> None:
    assert health.throttled_now(tree(tmp_path, files)) is expected


def test_throttling_once_seen_is_not_forgotten(tmp_path: Path) -> None:
    sys = tree(tmp_path / "sys", {FIRMWARE: "1"})
    meter = HealthMeter(tmp_path, Clock(), sys=sys)
    assert meter.read().throttled is True
    tree(sys, {FIRMWARE: "0"})
    assert meter.read().throttled is True


def test_the_clock_offset_is_against_the_hub_and_kept_for_others(tmp_path: Path) -> None:
    clock = Clock(1000.0)
    meter = HealthMeter(tmp_path, clock)
    assert health.last_contact(tmp_path) is None
    meter.hub_time(1030.0)
    assert meter.read().clock_offset_s == -30.0
    assert health.last_contact(tmp_path) == health.Contact(1000.0, -30.0)
    clock.now += health.CONTACT_EVERY_S - 1
    meter.hub_time(clock.now)
    assert meter.read().clock_offset_s == 0.0
    assert health.last_contact(tmp_path) == health.Contact(1000.0, -30.0)
    clock.now += 1
    meter.hub_time(clock.now)
    assert health.last_contact(tmp_path) == health.Contact(1000.0 + health.CONTACT_EVERY_S, 0.0)


def test_a_clock_that_was_set_back_does_not_stop_the_note_of_contact(tmp_path: Path) -> None:
    clock = Clock(2_000_000_000.0)
    meter = HealthMeter(tmp_path, clock)
    meter.hub_time(1000.0)
    clock.now = 1000.0
    meter.hub_time(1000.0)
    assert health.last_contact(tmp_path) == health.Contact(1000.0, 0.0)


def test_a_store_that_is_gone_does_not_stop_the_offset(tmp_path: Path) -> None:
    meter = HealthMeter(tmp_path / "gone", Clock(1000.0))
    meter.hub_time(990.0)
    assert meter.read().clock_offset_s == 10.0
