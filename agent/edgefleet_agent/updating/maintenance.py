"""Maintenance windows: when a new release may be tried and switched to. Decisions only, no clock.

    Sat Sun 02:00-05:00      on these days
    Mon-Fri 22:00-04:00      a range of days; an end before the start is on the day after
    01:00-03:00              every day
    Sun 00:00-24:00          a whole day

Rules:

1. A window belongs to the day on which it opens; its end is no longer inside.
2. Times are those on the wall: the caller gives the device's local time, with the change to and
   from summer time in it. What lies in the hour that is skipped does not open on that day; what
   lies in the hour that comes twice opens twice.
3. No windows at all: any time. A window that cannot be read is refused, never "any time".
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from edgefleet_agent.errors import ConfigError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_FORM = "expected for example 'Sat Sun 02:00-05:00', 'Mon-Fri 22:00-04:00' or '01:00-03:00'"
_HOURS = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


class Windows:
    """The windows of one device, each as `(opens, lasts)` in minutes of the week from Monday."""

    def __init__(self, windows: Iterable[tuple[int, int]] = ()) -> None:
        self._windows = sorted(windows)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Windows":
        """Read windows as the configuration gives them.

        Raises:
            ConfigError: if one cannot be read.
        """
        return cls(window for text in texts for window in _parse(text))

    def is_open(self, now: datetime) -> bool:
        """Tell whether a window is open.

        Args:
            now: local time of the device.
        """
        minute = _minute_of_week(now)
        return not self._windows or any(
            (minute - opens) % _WEEK_MINUTES < lasts for opens, lasts in self._windows
        )

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when the next window opens, None while one is open.

        Args:
            now: local time of the device.
        """
        if self.is_open(now):
            return None
        minute = _minute_of_week(now)
        wait = min((opens - minute) % _WEEK_MINUTES for opens, _ in self._windows)
        return now.replace(second=0, microsecond=0) + timedelta(minutes=wait)

    def reason(self, now: datetime) -> str:
        """Say what is waited for, in the words of a state message; empty while one is open."""
        opens = self.opens_at(now)
        if opens is None:
            return ""
        return f"waits for the maintenance window {DAYS[opens.weekday()]} {opens:%H:%M}"


def _minute_of_week(at: datetime) -> int:
    return (at.weekday() * 24 + at.hour) * 60 + at.minute


def _parse(text: str) -> Iterator[tuple[int, int]]:
    *days, hours = text.split() or [""]
    found = _HOURS.fullmatch(hours)
    if found is None:
        raise ConfigError(f"maintenance window {text!r} cannot be read; {_FORM}")
    first_hour, first_minute, last_hour, last_minute = map(int, found.groups())
    opens, closes = first_hour * 60 + first_minute, last_hour * 60 + last_minute
    if max(first_minute, last_minute) > 59 or opens >= _DAY_MINUTES or closes > _DAY_MINUTES:
        raise ConfigError(f"maintenance window {text!r}: {hours} is no time of day; {_FORM}")
    if opens == closes:
        raise ConfigError(
            f"maintenance window {text!r} is empty; for a whole day write '00:00-24:00'"
        )
    lasts = (closes - opens) % _DAY_MINUTES or _DAY_MINUTES
    for day in dict.fromkeys(day for word in days for day in _days(word, text)) or range(7):
        yield day * _DAY_MINUTES + opens, lasts


def _days(word: str, text: str) -> list[int]:
    """Return the days that `Sat` or `Mon-Fri` stands for; a range may go over Sunday."""
    first, _, last = word.partition("-")
    names = (first, last or first)
    if not all(name in DAYS for name in names) or word.endswith("-"):
        raise ConfigError(f"maintenance window {text!r}: {word!r} is no day of {DAYS}; {_FORM}")
    begin, end = (DAYS.index(name) for name in names)
    return [(begin + step) % 7 for step in range((end - begin) % 7 + 1)]
