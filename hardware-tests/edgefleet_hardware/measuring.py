"""What boards measured, as the file that `edgefleet-convert search --measurements` reads."""

from itertools import groupby

import msgspec

from edgefleet_converters.searching.candidates import Distribution
from edgefleet_converters.searching.measurements import (
    MAX_LOADS,
    MeasuredModel,
    MeasurementFile,
    Run,
)
from edgefleet_hardware.results import Cell, Document


def measurements(document: Document) -> MeasurementFile:
    """Return the figures of every real board in a document.

    Emulated targets measure no time, and a target without a board's name belongs to none: both are
    left out. So are models that could not be tried.
    """
    runs = []
    for target, cells in groupby(document.cells, key=lambda cell: cell.target):
        if target.is_emulated or not target.board:
            continue
        models = [_model(cell) for cell in cells if cell.outcome is not None]
        runs.append(Run(target.board, target.runtime, target.version, models))
    return MeasurementFile(runs)


def encode(found: MeasurementFile) -> bytes:
    """Return the file's bytes: equal figures give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(found, order="sorted"), indent=1) + b"\n"


def _model(cell: Cell) -> MeasuredModel:
    outcome = cell.outcome
    assert outcome is not None  # the caller looked
    latency = outcome.latency_us
    return MeasuredModel(
        cell.sha256,
        cell.case,
        outcome.kind,
        None if latency is None else Distribution(latency.p50, latency.p90, latency.p99),
        [load.median_us for load in outcome.loads][:MAX_LOADS],
        outcome.memory_bytes,
        outcome.temperature_c,
    )
