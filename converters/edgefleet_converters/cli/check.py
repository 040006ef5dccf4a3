"""`edgefleet-convert check`: does a model run on a runtime and board? Told without running it.

Exit codes: 0 it fits everything that was asked (or, where no runtime was named, some release), 1 it
does not, 2 the file cannot be read or the question is wrong.
"""

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgefleet_converters import bundles
from edgefleet_converters.cli.app import FAILED, JsonFlag, app, fail
from edgefleet_converters.compatibility import boards, check, releases
from edgefleet_converters.compatibility.boards import BoardProfile
from edgefleet_converters.compatibility.check import Verdict
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.releases import FORMATS, RUNTIMES, Asked
from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_protocol import profiles
from edgefleet_protocol.manifest import Needs
from edgefleet_protocol.profiles import DeviceProfile


class _Subject(Struct):
    """What is checked.

    Attributes:
        needs: of its manifest; None for a bare file.
    """

    facts: Facts
    needs: Needs | None


@app.command("check")
def check_model(
    model: Annotated[Path, typer.Argument(help="Model file (.onnx, .tflite) or bundle folder.")],
    board: Annotated[
        list[str] | None, typer.Option(help="Name, or TOML file of your own; may be repeated.")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Like onnxruntime==1.18; may be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell whether a model runs on runtimes and boards, without running it."""
    try:
        asked = [releases.asked(text) for text in runtime or []]
        known = [boards.find(name) for name in board or []]
        subject = _read(model)
        if subject.facts.unreadable:
            raise BadInputError(f"{model}: {subject.facts.unreadable}")
        verdicts = _verdicts(subject, asked, known)
    except ConversionError as error:
        fail(error, as_json)
    if as_json:
        print(json.dumps([msgspec.to_builtins(verdict) for verdict in verdicts], indent=2))
    else:
        _show(model, verdicts)
    # Nothing to try (a board without any runtime of the format) is no "fits".
    fits = [verdict.fits for verdict in verdicts]
    if not any(fits) or (asked and not all(fits)):
        raise typer.Exit(FAILED)


def _read(path: Path) -> _Subject:
    """Look at a model file, or at that of a bundle, every digest of which must be right.

    Raises:
        BadInputError: if it cannot be read, or differs from its manifest.
    """
    if path.is_dir():
        bundle = bundles.load(path)
        return _Subject(check.inspect(bundle.unpack("model")), bundle.manifest.needs)
    try:
        with path.open("rb") as stream:
            data = stream.read(check.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _Subject(check.inspect(data, folder=path.parent), None)


def _verdicts(subject: _Subject, asked: list[Asked], known: list[BoardProfile]) -> list[Verdict]:
    boards_or_any: list[BoardProfile | None] = [*known] or [None]
    return [
        _with_manifest(
            check.judge(subject.facts, question.runtime, question.version, board),
            subject.needs,
            board,
        )
        for board in boards_or_any
        for question in asked or _all_releases(subject.facts.format, board)
    ]


def _all_releases(model_format: str, board: BoardProfile | None) -> list[Asked]:
    """Return every known release of the runtimes of a format that there are for a board."""
    return [
        Asked(runtime, version)
        for runtime in RUNTIMES
        if FORMATS[runtime] == model_format and (board is None or board.offers(runtime))
        for version in check.known_releases(runtime)
    ]


def _with_manifest(verdict: Verdict, needs: Needs | None, board: BoardProfile | None) -> Verdict:
    """Add what a bundle's manifest says against a runtime and board."""
    if needs is None:
        return verdict
    name = releases.REPORTED[verdict.runtime]
    if board is None:
        needs = msgspec.structs.replace(needs, boards=[], memory_bytes=0)
    device = DeviceProfile(
        verdict.board, {name: verdict.version}, 0 if board is None else board.memory_bytes
    )
    reasons = verdict.reasons + [f"its manifest {text}" for text in profiles.misfits(needs, device)]
    return msgspec.structs.replace(verdict, fits=not reasons, reasons=reasons)


def _show(model: Path, verdicts: list[Verdict]) -> None:
    table = Table(title=model.name, show_lines=any(len(one.reasons) > 1 for one in verdicts))
    with_board = any(verdict.board for verdict in verdicts)
    for column in (["board"] if with_board else []) + ["runtime", "fits"]:
        table.add_column(column, no_wrap=True)
    table.add_column("why not", overflow="fold")
    for verdict in verdicts:
        cells = [verdict.board] if with_board else []
        cells += [
            f"{verdict.runtime} {verdict.version}",
            "yes" if verdict.fits else "no",
            escape("\n".join(verdict.reasons)),
        ]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    if not verdicts:
        return
    console.print(f"memory, estimated from shapes: {verdicts[0].memory_bytes:,} bytes")
    for note in verdicts[0].notes:
        console.print(f"note: {note}", markup=False)
