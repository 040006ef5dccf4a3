"""Command line `edgefleet-compat`: does this model run, correctly, in this runtime, on this board?

Exit codes: 0 right, 1 not right, 2 wrong use, 3 something could not be tried (no emulator, no such
release): that is never counted as success.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer
from rich.console import Console

from edgefleet_converters.errors import ConversionError
from edgefleet_hardware import (
    baseline,
    cases,
    fleet,
    junit,
    loads,
    matrix,
    measuring,
    references,
    report,
    results,
    runtimes,
    ssh,
    static,
    summary,
    tflite_traps,
    traps,
    zoo,
)
from edgefleet_hardware.baseline import Allowed
from edgefleet_hardware.cases import Case, Limits
from edgefleet_hardware.errors import BadUseError, HardwareError, TargetUnavailableError
from edgefleet_hardware.results import NOT_RIGHT, RIGHT, UNTRIED, WRONG_USE
from edgefleet_hardware.runtimes import PROCESSORS, Runtime, processor
from edgefleet_hardware.targets import Target

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Does this model run, correctly, in this runtime release, on this board?",
)
# An emulated core is some fifty times slower, and a busy machine slower again; a trap that never
# ends takes all of its time, in every cell.
_MODEL_TIME_S, _TRAP_TIME_S = 300.0, 10.0
_console = Console(soft_wrap=True)
_errors = Console(stderr=True, soft_wrap=True)


@app.command()
def run(
    models: Annotated[list[Path], typer.Argument(help="Bundle folders, .onnx or .tflite files.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="NAME==VERSION; may be given again; a board's own."),
    ] = None,
    cpu: Annotated[
        list[str] | None,
        typer.Option("--cpu", help=f"{', '.join(PROCESSORS)}; again for more; this machine's own."),
    ] = None,
    ssh_host: Annotated[
        str | None, typer.Option("--ssh", help="Run on this board, as `ssh HOST` reaches it.")
    ] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="For ssh, instead of yours.")] = None,
    ssh_python: Annotated[str, typer.Option(help="Interpreter on that board.")] = "python3",
    board: Annotated[
        str, typer.Option(help="Profile of that board, for the static check and the measurements.")
    ] = "",
    device: Annotated[
        str | None,
        typer.Option(help="Send bundles to this enrolled device; EDGEFLEET_TOKEN says who asks."),
    ] = None,
    hub: Annotated[str, typer.Option(envvar="EDGEFLEET_HUB", help="URL of its hub.")] = "",
    ca: Annotated[
        Path | None, typer.Option(envvar="EDGEFLEET_CA", help="Certificate of the hub's authority.")
    ] = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Ask the static check, run nothing.")
    ] = False,
    time_s: Annotated[float, typer.Option(min=0.1, help="Longest time of one model.")] = 120.0,
    memory_mib: Annotated[int, typer.Option(min=16, help="Most memory of its process.")] = 2048,
    loads_: Annotated[
        int,
        typer.Option(
            "--loads",
            min=0,
            max=100,
            envvar="EDGEFLEET_LOADS",
            help=f"Times are taken from so many fresh loads of a model; {loads.LEAST} tell"
            " an interval; 0: no times.",
        ),
    ] = loads.USUAL,
    result: Annotated[Path | None, typer.Option(help="Write the result document (JSON).")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
    summary_file: Annotated[
        Path | None,
        typer.Option("--summary", envvar="GITHUB_STEP_SUMMARY", help="Append it, in Markdown."),
    ] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(help="Write what boards measured, for `edgefleet-convert search`."),
    ] = None,
    baseline_file: Annotated[
        Path | None, typer.Option("--baseline", help="Earlier result document: fail if worse.")
    ] = None,
    max_slower: Annotated[float, typer.Option(min=0, help="Than the baseline, as a share.")] = 0.1,
    max_bigger: Annotated[float, typer.Option(min=0, help="Likewise, of the file.")] = 0.02,
    max_memory: Annotated[float, typer.Option(min=0, help="Likewise, of the peak memory.")] = 0.2,
    max_drop: Annotated[float, typer.Option(min=0, help="Of accuracy or agreement.")] = 0.0,
) -> None:
    """Run models or bundles in exact runtime releases: here, on emulated ARM cores, on real boards.

    First the static check says what it expects. Then the model is run: in a throw-away environment
    that holds nothing but that release, over SSH, or by the agent of an enrolled device.
    """
    try:
        given = _read(models, Limits(time_s, memory_mib << 20))
        releases = [Runtime.parse(text) for text in runtime or ()]
        places = Places(ssh_host, ssh_config, ssh_python, board, device, hub, ca)
        targets = _targets(releases, cpu, places, loads_)
        if check_only:
            document = matrix.told(given, targets, static.teller())
        else:
            filled = references.fill(given, {})
            document = matrix.build(filled, targets, static.teller(), _progress)
        if not document.cells:
            raise BadUseError("no model is of the format of one of the runtimes")
        _write(result, lambda: results.encode(document))
        _write(junit_file, lambda: junit.encode(document))
        _write(measurements, lambda: measuring.encode(measuring.measurements(document)))
        compared = None
        if baseline_file is not None:
            allowed = Allowed(max_slower, max_bigger, max_memory, max_drop)
            earlier = results.decode(cases.read_bytes(baseline_file))
            compared = baseline.compare(document, earlier, allowed)
        _append(summary_file, summary.markdown(document, compared))
    except (HardwareError, ConversionError) as error:
        _fail(error)
    _console.print(report.table(document))
    code = results.exit_code(document.cells, is_told_only=check_only)
    if compared is not None:
        for line in summary.comparison(compared):
            _console.print(line, markup=False, highlight=False)
        code = code or (NOT_RIGHT if compared.regressions else RIGHT)
    raise typer.Exit(code)


@app.command("matrix")
def matrix_(
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="NAME==VERSION, again for more; eight by default."),
    ] = None,
    cpu: Annotated[
        list[str] | None, typer.Option("--cpu", help="A core, again for more; all by default.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of models; by default EDGEFLEET_DATA/models (../shared/models)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for matrix.json and matrix.md.")] = Path(
        "build/compat"
    ),
) -> None:
    """Run every model of a folder, and traps, in every release on every core.

    Fails unless every cell was tried and came out as the static check said.
    """
    folder = models or Path(os.environ.get("EDGEFLEET_DATA", "../shared")) / "models"
    try:
        processors = [processor(name) for name in cpu] if cpu else matrix.processors()
        chosen = [Runtime.parse(text) for text in runtime or matrix.RUNTIMES]
        targets = matrix.local_targets(chosen, processors)
        document = matrix.build(_gather(folder), targets, static.teller(), _progress)
        _write(out / "matrix.json", lambda: results.encode(document))
        _write(out / "matrix.md", lambda: report.markdown(document).encode())
    except (HardwareError, ConversionError) as error:
        _fail(error)
    counted = results.count(document.cells)
    _console.print(report.grid(document))
    for line in report.summary(counted):
        _console.print(line, markup=False, highlight=False)
    if counted.disagreeing or not counted.cells:
        raise typer.Exit(NOT_RIGHT)
    raise typer.Exit(RIGHT if counted.tried == counted.cells else UNTRIED)


class Places(NamedTuple):
    """Where else than on this machine models are run."""

    ssh_host: str | None
    ssh_config: Path | None
    ssh_python: str
    board: str
    device: str | None
    hub: str
    ca: Path | None


def _targets(
    releases: list[Runtime], cpu: list[str] | None, places: Places, loads_: int
) -> list[Target]:
    """Return every target that the options name."""
    found: list[Target] = []
    if places.ssh_host:
        connection = ssh.Connection(places.ssh_host, places.ssh_config, places.ssh_python)
        found += ssh.targets(connection, releases, places.board, loads_)
    if places.device:
        token = os.environ.get("EDGEFLEET_TOKEN", "")
        if not places.hub or not token:
            raise BadUseError("--device needs --hub (or EDGEFLEET_HUB) and EDGEFLEET_TOKEN")
        found += fleet.targets(fleet.Hub(places.hub, token, places.ca), places.device)
    if cpu or not found:
        if not releases:
            raise BadUseError("name a release with --runtime, or a board with --ssh or --device")
        processors = [processor(name) for name in cpu] if cpu else [runtimes.own()]
        found += matrix.local_targets(releases, processors, loads_)
    return found


def _append(path: Path | None, text: str) -> None:
    """Add a summary to a file: a page of CI collects those of all its steps."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BadUseError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read(paths: list[Path], limits: Limits) -> list[Case]:
    """Read the cases; their names must differ, because results are compared by name."""
    given = [cases.read(path, limits) for path in paths]
    names = [case.name for case in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadUseError(f"given twice: {', '.join(twice)}")
    return given


def _gather(folder: Path) -> list[Case]:
    """Return the cases of a folder of models and the traps, with what they should answer."""
    found, truths = zoo.gather(folder, Limits(_MODEL_TIME_S))
    limits = Limits(_TRAP_TIME_S)
    more, known = tflite_traps.derived(found, truths)
    everything = [*found, *traps.onnx_cases(limits), *tflite_traps.made(limits), *more]
    return references.fill(everything, truths | known)


def _progress(line: str) -> None:
    _errors.print(line, markup=False, highlight=False)


def _write(path: Path | None, encode: Callable[[], bytes]) -> None:
    if path is None:
        return
    data = encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise BadUseError(f"{path}: cannot be written: {error.strerror or error}") from error


def _fail(error: Exception) -> NoReturn:
    _errors.print(f"error: {error}", style="red", markup=False)
    raise typer.Exit(UNTRIED if isinstance(error, TargetUnavailableError) else WRONG_USE) from error
