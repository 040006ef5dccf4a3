"""Does this model run on that runtime and board? Told from the file and tables, without a run.

    facts = inspect(data)                               once for a file, in a child process
    verdict = judge(facts, "onnxruntime", "1.18", board)    any number of times, pure
    verdict = check(data, "onnxruntime", "1.18", board)     both

A verdict *fits* only if nothing speaks against it; what could not be told speaks against it.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from edgefleet_converters import child
from edgefleet_converters.compatibility import (
    kernels,
    onnx_check,
    reading,
    recognition,
    releases,
    tflite_check,
    tflite_kernels,
)
from edgefleet_converters.compatibility.boards import BoardProfile
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.releases import FORMATS, REPORTED, Asked, RuntimeName
from edgefleet_converters.errors import ChildError, UnsupportedError

# A model of this size takes a second; the rest is for a machine that is busy.
_LIMITS = child.ChildLimits(time_s=120.0, memory_bytes=3 << 30)
# Where no board is named: the memory of the largest board of the profiles' makers.
LARGEST_BOARD_BYTES = 16 << 30
MAX_FILE_BYTES = 2 << 30


class Verdict(Struct, frozen=True):
    """The answer for one runtime version and board.

    Attributes:
        runtime: as asked.
        version: as asked.
        table: release whose table answered.
        board: name; empty for none.
        fits: whether nothing speaks against it.
        readable: whether the file is a model at all.
        reasons: everything that speaks against it.
        notes: what a person should know besides.
        memory_bytes: estimate of weights and activations.
    """

    runtime: RuntimeName
    version: str
    table: str
    board: str
    fits: bool
    readable: bool = True
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory_bytes: int = 0


def check(
    data: bytes,
    runtime: str,
    version: str,
    board: BoardProfile | None = None,
    *,
    folder: Path | None = None,
) -> Verdict:
    """Tell whether a model runs on a runtime and board.

    Args:
        data: the model file.
        runtime: `onnxruntime`, `ai-edge-litert` (or `litert`), `tflite-runtime`.
        version: of the runtime.
        board: None for any.
        folder: where external data of an ONNX file lies; None to have none.

    Raises:
        BadInputError: no such runtime, or a version of which nothing is known.
    """
    return judge(inspect(data, folder=folder), runtime, version, board)


def inspect(
    data: bytes, *, folder: Path | None = None, limits: child.ChildLimits = _LIMITS
) -> Facts:
    """Look at a model file. Never raises for what is in it: see `Facts.unreadable`.

    Args:
        data: the model file.
        folder: where external data of an ONNX file lies; None to have none.
        limits: of the child process that looks.
    """
    kind = recognition.model_format(data[: recognition.HEAD_BYTES])
    wrong = recognition.not_a_model(data[: recognition.HEAD_BYTES], len(data))
    if len(data) > MAX_FILE_BYTES:
        wrong = f"it has {len(data)} bytes; model files have up to {MAX_FILE_BYTES}"
    if wrong:
        return Facts(kind, len(data), unreadable=wrong)
    try:
        return child.run(
            "looking at the model",
            reading.look,
            kind,
            data,
            None if folder is None else str(folder),
            returns=Facts,
            limits=limits,
        )
    except ChildError as error:
        return Facts(kind, len(data), unreadable=f"it cannot be looked at safely: {error}")


def judge(facts: Facts, runtime: str, version: str, board: BoardProfile | None = None) -> Verdict:
    """Hold facts of a model file against a runtime version and board. Pure.

    Raises:
        BadInputError: no such runtime, or a version of which nothing is known.
    """
    asked = Asked(releases.runtime_name(runtime), version)
    known = known_releases(asked.runtime)
    table = releases.table_for(asked, known)
    if facts.unreadable:
        reasons = [facts.unreadable]
    elif facts.format != FORMATS[asked.runtime]:
        runs = FORMATS[asked.runtime]
        reasons = [f"it is a model of the format {facts.format}; {asked.runtime} runs {runs}"]
    else:
        reasons = [*facts.faults, *_runtime_reasons(facts, asked, known.index(table))]
        reasons += _memory_reasons(facts, board)
    reasons += _board_reasons(asked, board)
    return Verdict(
        asked.runtime,
        version,
        table,
        "" if board is None else board.name,
        not reasons,
        not facts.unreadable,
        reasons,
        facts.notes,
        facts.memory_bytes,
    )


def known_releases(runtime: RuntimeName) -> list[str]:
    """Return the releases of which there are tables, oldest first."""
    if runtime == "onnxruntime":
        return kernels.shipped().versions
    return [held.version for held in tflite_kernels.shipped()[runtime]]


def lowest_runtime(facts: Facts, runtime: RuntimeName) -> str:
    """Return the oldest release that runs a model, and from which on all known ones do.

    Raises:
        UnsupportedError: if the newest does not run it.
    """
    lowest = ""
    for version in reversed(known_releases(runtime)):
        verdict = judge(facts, runtime, version)
        if not verdict.fits:
            if not lowest:
                raise UnsupportedError(
                    f"{runtime} {version} does not run it: {'; '.join(verdict.reasons)}"
                )
            break
        lowest = version
    return releases.minor(lowest)


def lowest_alternatives(facts: Facts) -> dict[str, str]:
    """Return what else than the first runtime of its family runs a model, for its manifest.

    Returns:
        Name under which devices report it → oldest release: for TFLite, tflite-runtime, if it does.
    """
    if facts.format != "tflite":
        return {}
    try:
        return {REPORTED["tflite-runtime"]: lowest_runtime(facts, "tflite-runtime")}
    except UnsupportedError:
        return {}  # devices that have only this one refuse the model then, as they must


def _runtime_reasons(facts: Facts, asked: Asked, index: int) -> list[str]:
    if facts.onnx is not None:
        return onnx_check.reasons(facts.onnx, kernels.shipped(), index)
    if facts.tflite is not None:
        return tflite_check.reasons(facts.tflite, tflite_kernels.shipped()[asked.runtime][index])
    raise ValueError(f"facts of a readable {facts.format} file hold no graph")


def _memory_reasons(facts: Facts, board: BoardProfile | None) -> Iterator[str]:
    needs = facts.memory_bytes
    if board is not None and needs > board.model_memory_bytes:
        yield (
            f"it needs about {needs:,} bytes of memory; a model on {board.title} may take"
            f" {board.model_memory_bytes:,}, a quarter of the board's"
        )
    elif needs > LARGEST_BOARD_BYTES:
        yield f"it needs about {needs:,} bytes of memory, more than any board has"


def _board_reasons(asked: Asked, board: BoardProfile | None) -> Iterator[str]:
    if board is None or asked.runtime in board.wheels:
        return
    for package in board.distribution_packages:
        name, _, version = package.partition(" ")
        if name == asked.runtime and releases.minor(version) == releases.minor(asked.version):
            return
    others = ", ".join([*board.wheels, *board.distribution_packages])
    yield f"{asked.runtime} {asked.version} does not exist for {board.title}; it has: {others}"
