"""Maintenance windows: what is read, what is refused, and when they are open."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.errors import ConfigError
from edgefleet_agent.updating.maintenance import Windows

# 2026-11-21 is a Saturday.
SATURDAY = datetime(2026, 11, 21)


def at(days: int, clock: str) -> datetime:
    hours, minutes = clock.split(":")
    return SATURDAY + timedelta(days=days, hours=int(hours), minutes=int(minutes))


def test_without_windows_it_is_always_time() -> None:
    windows = Windows.parse([])
    assert windows.is_open(SATURDAY)
    assert windows.opens_at(SATURDAY) is None
    assert windows.reason(SATURDAY) == ""


def test_a_window_opens_at_its_first_minute_and_is_closed_at_its_last() -> None:
    windows = Windows.parse(["Sat Sun 02:00-05:00"])
    assert not windows.is_open(at(0, "02:00") - timedelta(seconds=1))
    assert windows.is_open(at(0, "02:00"))
    assert windows.is_open(at(0, "05:00") - timedelta(seconds=1))
    assert not windows.is_open(at(0, "05:00"))
    assert windows.is_open(at(1, "03:00"))
    assert not windows.is_open(at(2, "03:00"))


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    windows = Windows.parse(["Mon-Fri 22:00-04:00"])
    assert windows.is_open(at(-1, "23:00"))  # Friday
    assert windows.is_open(at(0, "03:59"))  # the night after it
    assert not windows.is_open(at(0, "22:00"))
    assert not windows.is_open(at(2, "03:00"))  # Monday before dawn: Sunday's night
    assert windows.is_open(at(2, "22:00"))


def test_a_week_that_turns_over_in_a_window_is_no_gap() -> None:
    windows = Windows.parse(["Sun 23:00-01:00"])
    assert windows.is_open(at(1, "23:30"))
    assert windows.is_open(at(2, "00:59"))
    assert not windows.is_open(at(2, "01:00"))


def test_the_next_opening_is_told() -> None:
    windows = Windows.parse(["Mon 22:00-04:00", "Wed 01:00-02:00"])
    assert windows.opens_at(at(0, "12:34") + timedelta(seconds=5)) == at(2, "22:00")
    assert windows.opens_at(at(2, "22:00")) is None
    assert windows.opens_at(at(3, "04:00")) == at(4, "01:00")
    assert windows.reason(at(0, "00:00")) == "waits for the maintenance window Mon 22:00"


def test_a_whole_day_a_range_over_sunday_and_every_day_can_be_said() -> None:
    assert Windows.parse(["Sun 00:00-24:00"]).is_open(at(1, "23:59"))
    assert not Windows.parse(["Sun 00:00-24:00"]).is_open(at(2, "00:00"))
    weekend = Windows.parse(["Fri-Mon 10:00-11:00"])
    assert [weekend.is_open(at(day, "10:00")) for day in range(-2, 4)] == [
        False, True, True, True, True, False,
    ]  # fmt: skip
    assert all(Windows.parse(["01:00-03:00"]).is_open(at(day, "01:00")) for day in range(7))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read"),
        ("Sat", "cannot be read"),
        ("Sat 2:00-5:00", "cannot be read"),
        ("Sat 02:00", "cannot be read"),
        ("Sat 02:00-05:00 Sun", "cannot be read"),
        ("Samstag 02:00-05:00", "'Samstag' is no day"),
        ("Sat- 02:00-05:00", "'Sat-' is no day"),
        ("Mon-Fri-Sun 02:00-05:00", "is no day"),
        ("Sat 24:00-05:00", "24:00-05:00 is no time of day"),
        ("Sat 02:00-24:01", "is no time of day"),
        ("Sat 02:60-05:00", "is no time of day"),
        ("Sat 02:00-02:00", "is empty; for a whole day write '00:00-24:00'"),
    ],
)
def test_a_window_that_cannot_be_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Windows.parse(["01:00-02:00", text])


def test_the_hour_that_is_skipped_in_spring_opens_nothing_and_the_next_week_does() -> None:
    berlin, windows = ZoneInfo("Europe/Berlin"), Windows.parse(["Sun 02:00-03:00"])
    night = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)
    minutes = (night + timedelta(minutes=minute) for minute in range(180))
    assert not any(windows.is_open(minute.astimezone(berlin)) for minute in minutes)
    week_later = datetime(2026, 4, 5, 2, 0, tzinfo=berlin)
    assert windows.opens_at(datetime(2026, 3, 29, 4, 0, tzinfo=berlin)) == week_later


TIMES = st.integers(0, 7 * 24 * 60 - 1).map(lambda minute: SATURDAY + timedelta(minutes=minute))
CLOCKS = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")
WINDOWS = st.tuples(st.sampled_from(["", "Mon ", "Sat Sun ", "Fri-Mon "]), CLOCKS, CLOCKS).filter(
    lambda parts: parts[1] != parts[2]
)


@given(st.lists(WINDOWS, min_size=1, max_size=3), TIMES)
def test_at_the_told_opening_a_window_is_open_and_was_not_a_minute_before(
    parts: list[tuple[str, str, str]], now: datetime
) -> None:
    windows = Windows.parse([f"{days}{first}-{last}" for days, first, last in parts])
    opens = windows.opens_at(now)
    if opens is None:
        assert windows.is_open(now)
    else:
        assert now < opens <= now + timedelta(days=7)
        assert windows.is_open(opens)
        assert not windows.is_open(opens - timedelta(minutes=1))
