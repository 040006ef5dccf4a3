"""Figures measured on boards: the file that `edgefleet-compat` writes and the search reads.

Version 2 is JSON: runs, each on one board with one runtime, each with the models it ran. A model is
known by the digest of its file, so figures of another model cannot slip in. Times on different runs
are not compared: a variant and float32 must stand in the same run. A run loads all its models anew
several times, in turns; the loads of one turn are neighbours in time and are compared in pairs.
Version 1 is read as well: its times are of one load of each model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching.candidates import Distribution
from edgefleet_converters.searching.medians import of_median
from edgefleet_converters.verification.evidence import Interval

VERSION = 2
_READ = (1, VERSION)
# A thousand models with a thousand times each take half of it.
MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_LOADS = 1000
# The extremes of so many pairs enclose the median in 97 of 100 cases.
LEAST_LOADS = 6
# Single loads of one model of up to 0.4 ms differed by no more in 95 of 100 pairs (docs/search.md).
ONE_LOAD_NOISE = 0.15

Time = Annotated[float, Meta(gt=0)]


class MeasuredModel(Struct, frozen=True):
    """One model in one run.

    Attributes:
        sha256: of the model file.
        outcome: `right`, or what went wrong (`wrong`, `refused`, `crashed`, …).
        latency_us: of one row; None if it was not timed (emulation tells nothing about time).
        loads_us: median times of a call in fresh loads, in the order of the turns.
        memory_peak_bytes: resident memory added at the peak; None if unknown.
        temperature_c: of the board, at the end.
    """

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    name: Annotated[str, Meta(max_length=200)] = ""
    outcome: Annotated[str, Meta(max_length=40)] = "right"
    latency_us: Distribution | None = None
    loads_us: Annotated[list[Time], Meta(max_length=MAX_LOADS)] = field(default_factory=list)
    memory_peak_bytes: Annotated[int, Meta(ge=0)] | None = None
    temperature_c: float | None = None


class Run(Struct, frozen=True):
    """What one runtime did on one board."""

    board: str
    runtime: Literal["onnxruntime", "ai-edge-litert", "tflite-runtime"]
    runtime_version: str
    measured: list[MeasuredModel]


class MeasurementFile(Struct, frozen=True):
    """A whole file."""

    runs: list[Run]
    version: int = VERSION


class OnBoard(Struct, frozen=True):
    """What a model did on a board, beside the other models of the same run.

    Attributes:
        model: its figures.
        others: digest → figures of the run, its own among them.
        source: runtime and version.
    """

    model: MeasuredModel
    others: dict[str, MeasuredModel]
    source: str

    def against(self, digest: str, confidence: float) -> Interval | None:
        """Return its latency as a share of another model's; None if either was not timed.

        The interval is that of the median ratio over pairs of loads. With too few of them it
        is the ratio of medians, uncertain by `ONE_LOAD_NOISE` to each side.
        """
        other = self.others.get(digest)
        if other is None or other.latency_us is None or self.model.latency_us is None:
            return None
        # A model that takes long gets fewer turns: the first ones are common.
        pairs = list(zip(self.model.loads_us, other.loads_us, strict=False))
        if len(pairs) >= LEAST_LOADS:
            return of_median([own / base for own, base in pairs], confidence)
        point = self.model.latency_us.p50 / other.latency_us.p50
        return Interval(point, point * (1 - ONE_LOAD_NOISE), point * (1 + ONE_LOAD_NOISE))


def read(path: Path) -> MeasurementFile:
    """Read a file of measurements.

    Raises:
        BadInputError: it cannot be read, or is of no version that is read.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadInputError(f"{path}: more than {MAX_FILE_BYTES} bytes of measurements")
    try:
        found = msgspec.json.decode(data, type=MeasurementFile)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: no file of measurements: {error}") from error
    if found.version not in _READ:
        raise BadInputError(
            f"{path}: measurements of version {found.version}; this release reads"
            f" {' and '.join(map(str, _READ))}"
        )
    return found


def on_board(files: Iterable[MeasurementFile], board: str) -> dict[str, OnBoard]:
    """Return digest → figures on a board; of several runs with a model, the last counts."""
    found: dict[str, OnBoard] = {}
    for run in (run for file in files for run in file.runs if run.board == board):
        models = {model.sha256: model for model in run.measured}
        source = f"{run.runtime} {run.runtime_version}"
        found |= {digest: OnBoard(model, models, source) for digest, model in models.items()}
    return found
