"""Whether a decoded message can be true, before any of it reaches the database. Decisions only.

The decoder has checked form and length. Here: numbers that a database can hold, finite values,
times that can be, and parts that fit one another. What depends on the model's reference profile is
checked where sketches are merged.
"""

from collections.abc import Iterable
from math import isfinite

import msgspec

from edgefleet_protocol import identifiers, statements
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.messages import (
    FINAL_STEPS,
    Attested,
    Refusal,
    Report,
    Result,
    Samples,
    State,
    Window,
)
from edgefleet_protocol.statements import DeviceStatement

# What a signed 32-bit column holds; PostgreSQL refuses more.
MAX_COUNT = 2**31 - 1
# Bytes travel in JSON too, whose readers are exact up to here.
MAX_BYTES = 2**53
# The end of the year 9999. Devices wake in 1970 or in 2040, and clocks are set back in the middle
# of a window: their times are kept as they are, for people, and the hub orders by its own clock.
MAX_TIME_S = 253_402_300_799.0


def check_state(state: State) -> None:
    """Refuse a state that cannot be.

    Raises:
        MalformedError: saying what of it.
    """
    _counts(
        "state",
        [state.boot, state.sequence, state.assignment],
        [slot.release for slot in (*state.serving, *state.previous, *state.challengers)],
        [attempt.number for attempt in state.attempts],
        [attempt.release for attempt in state.attempts],
    )
    _bytes("state", [state.memory_bytes])
    for attempt in state.attempts:
        _bytes("state", [attempt.received_bytes, attempt.total_bytes])
        if attempt.tried is not None:
            _bytes("state", [attempt.tried.memory_bytes])
            if not isfinite(attempt.tried.latency_us):
                raise MalformedError("state: the latency of a trial must be a finite number")
    _moment("state", state.at)
    _texts("state", msgspec.to_builtins(state))


def check_report(report: Report) -> None:
    """Refuse a report that cannot be.

    Raises:
        MalformedError: saying what of it.
    """
    _counts("report", [report.number])
    _moment("report", report.at)
    _texts("report", [report.store])
    body = report.body
    if isinstance(body, Window):
        _check_window(body)
    elif isinstance(body, Samples):
        _check_samples(body)
    elif isinstance(body, Result):
        _check_result(body)
    elif isinstance(body, Attested):
        _check_statement(statements.read_statement(body.statement))
    else:
        _check_refusal(body)


def _check_window(window: Window) -> None:
    _name_of_model(window.model)
    _texts("window", [window.version])
    _counts(
        "window",
        [window.release, window.rows, window.errors, window.labelled, window.correct],
        window.predictions,
        window.confidences,
        window.latency_us,
    )
    _moment("window", window.start)
    _moment("window", window.end)
    if not window.correct <= window.labelled <= window.rows:
        raise MalformedError(
            f"window has {window.correct} right of {window.labelled} labelled of {window.rows} rows"
        )
    for counts, what in ((window.predictions, "predictions"), (window.confidences, "confidences")):
        if sum(counts) > window.rows:
            raise MalformedError(f"window has {sum(counts)} {what} of {window.rows} rows")
    # Of every field, so that none is forgotten that a later version measures.
    measured = [value for value in msgspec.structs.astuple(window.health) if value is not None]
    if not all(map(isfinite, [*window.psi, *measured])):
        raise MalformedError("window: PSI and health must be finite numbers")
    _bytes("window", [value for value in measured if isinstance(value, int)])


def _check_samples(samples: Samples) -> None:
    _name_of_model(samples.model)
    _counts("samples", [samples.release])
    texts = (samples.columns, samples.labels, samples.predicted)
    _texts("samples", [samples.version, samples.purpose, *texts])
    expected = 4 * len(samples.labels) * len(samples.columns)
    if len(samples.rows) != expected or len(samples.predicted) != len(samples.labels):
        raise MalformedError(
            f"samples: {len(samples.rows)} bytes of rows and {len(samples.predicted)} predictions"
            f" for {len(samples.labels)} labels and {len(samples.columns)} columns;"
            f" expected {expected} bytes and as many predictions as labels"
        )


def _check_result(result: Result) -> None:
    _name_of_model(result.model)
    _counts("result", [result.attempt, result.release])
    _bytes("result", [result.bytes_fetched])
    _texts("result", [result.version, result.reason])
    if result.outcome not in FINAL_STEPS:
        raise MalformedError(f"result: {result.outcome} is no end of an attempt")
    if not isfinite(result.seconds):
        raise MalformedError("result: seconds must be a finite number")


def _check_refusal(refusal: Refusal) -> None:
    _texts("refusal", [refusal.what, refusal.reason, refusal.text])
    if refusal.digest:
        identifiers.digest(refusal.digest)


def _check_statement(statement: DeviceStatement) -> None:
    _counts("statement", [statement.assignment, statement.boot, statement.sequence])
    _counts("statement", [slot.release for slot in (*statement.serving, *statement.previous)])
    _moment("statement", statement.at)
    _texts("statement", msgspec.to_builtins(statement))


def _name_of_model(name: str) -> None:
    identifiers.model_name(name)


def _counts(what: str, *groups: Iterable[int]) -> None:
    for group in groups:
        highest = max(group, default=0)
        if highest > MAX_COUNT:
            raise MalformedError(f"{what}: count {highest} is over {MAX_COUNT}")


def _bytes(what: str, sizes: Iterable[int]) -> None:
    highest = max(sizes, default=0)
    if highest > MAX_BYTES:
        raise MalformedError(f"{what}: {highest} bytes is over {MAX_BYTES}")


def _moment(what: str, at: float) -> None:
    if not 0 <= at <= MAX_TIME_S:  # NaN fails too
        raise MalformedError(f"{what}: {at} is no time")


def _texts(what: str, value: object) -> None:
    """Refuse the one character that PostgreSQL's text cannot hold, at any depth."""
    if isinstance(value, str):
        if "\x00" in value:
            raise MalformedError(f"{what}: text holds a NUL character")
    elif isinstance(value, dict):
        _texts(what, [*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            _texts(what, item)
