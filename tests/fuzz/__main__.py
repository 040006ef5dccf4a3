"""The command `python -m tests.fuzz`: every target by every engine, each in a process of its own.

A process that dies takes no other with it, and is a finding: an input that kills the interpreter is
the worst of them. Whatever is found lies under `build/fuzz/found/`; the last line counts.
"""

import argparse
import contextlib
import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from importlib import util
from pathlib import Path

import msgspec

from tests.fuzz import engine
from tests.fuzz.engine import Finding, Tally
from tests.fuzz.targets import CORPUS, Target, every, named, select

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
ATHERIS = BUILD / "atheris"
# Of address space: what Python with numpy, pyarrow and ONNX Runtime maps, and 2 GiB.
MAX_MEMORY_BYTES = 6 << 30
# A process that ends no sooner hangs, whatever it was doing.
PATIENCE_S = 600.0
# Fuzzed by schemathesis (`api`): in its own process, and a running hub over TLS.
APIS = ("hub-api", "hub-api-tls")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
# What libFuzzer's exit codes mean; everything else that is not 0 is a crash.
_EXITS = {70: "hang", 71: "over-allocation"}


def main() -> int:
    """Do what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="targets that match")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each target and engine")
    parser.add_argument("--requests", type=int, default=30, help="for each operation of the API")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="say what would be run")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("seeds", help="write the seeds of all targets into the corpus")
    one = commands.add_parser("one", help="fuzz one target in this process")
    one.add_argument("target")
    one.add_argument("tally", type=Path)
    again = commands.add_parser("again", help="give a target one input, and show what comes of it")
    again.add_argument("target")
    again.add_argument("input", type=Path)
    given = parser.parse_args()
    if given.command == "one":
        return _one(given.target, given.tally, given)
    if given.command == "again":
        return _again(given.target, given.input)
    targets = list(select(every(), given.only))
    if given.command == "seeds":
        return _write_seeds(targets)
    if given.list:
        print(*(f"{target.name}{' (guided too)' * target.guided}" for target in targets), sep="\n")
        return 0
    return _all(targets, given)


def _all(targets: list[Target], given: argparse.Namespace) -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    runs: list[Callable[[], Tally]] = [
        lambda name=target.name: _in_child(name, given) for target in targets
    ]
    apis = [name for name in APIS if fnmatch(name, given.only or "*")]
    runs += [lambda name=name: _in_child(name, given) for name in apis]
    if _atheris_is_there():
        guided = [target.name for target in targets if target.guided]
        runs += [lambda name=name: _guided(name, given) for name in guided]
    else:
        print("atheris has no wheel for this Python: the engine guided by coverage is left out")
    with ThreadPoolExecutor(given.jobs) as pool:
        ran = []
        for tally in pool.map(lambda run: run(), runs):
            ran.append(tally)
            _tell(tally)
    rows = [tally.row() for tally in ran]
    (BUILD / "fuzz.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    print(summary(ran))
    return 1 if any(tally.findings for tally in ran) else 0


def summary(ran: list[Tally]) -> str:
    """Return the last line."""
    counted = {
        kind: sum(tally.counted(kind) for tally in ran)
        for kind in ("crash", "hang", "over-allocation")
    }
    return (
        f"{len({tally.target for tally in ran})} targets, "
        f"{sum(tally.executions for tally in ran):,} executions, "
        f"{counted['crash']} crashes, {counted['hang']} hangs, "
        f"{counted['over-allocation']} over-allocations"
    )


def _tell(tally: Tally) -> None:
    # What libFuzzer ran is counted by itself, and it does not know what was accepted.
    accepted = "" if tally.engine == "guided" else f"{tally.accepted:9,} accepted"
    ran = f"{tally.executions:9,} executions {accepted:18} {tally.seconds:7.1f} s"
    print(f"{tally.target:26} {tally.engine:12} {ran}", flush=True)
    for number, finding in enumerate(tally.findings):
        path = BUILD / "found" / tally.target / f"{tally.engine}-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(finding.data)
        print(f"  FOUND {finding.text}\n        {path.relative_to(ROOT)}", flush=True)


# --- one target in a child ------------------------------------------------------------------------


def _in_child(name: str, given: argparse.Namespace) -> Tally:
    answer, current = BUILD / f"{name}.json", BUILD / f"{name}.input"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(given.seconds)]
    command += ["--requests", str(given.requests), "--seed", str(given.seed)]
    tally = Tally(name, "hypothesis")
    try:
        done = subprocess.run(
            [*command, "one", name, str(answer)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=given.seconds + PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        tally.findings.append(Finding("hang", "the process did not end", _last(current)))
        return tally
    if not answer.exists():
        text = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
        tally.findings.append(Finding("crash", text, _last(current)))
        return tally
    read = msgspec.json.decode(answer.read_bytes(), type=Tally)
    answer.unlink()
    current.unlink(missing_ok=True)
    return read


def _one(name: str, answer: Path, given: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    if name in APIS:
        # Imported here, for it takes seconds.
        from tests.fuzz import api

        logging.disable(logging.CRITICAL)
        run = api.run_in_process if name == APIS[0] else api.run_over_tls
        tally = run(examples=given.requests, first_seed=given.seed)
    else:
        target = named(name)
        current = answer.with_suffix(".input")
        tally = engine.run(
            target, seconds=given.seconds, first_seed=given.seed, before=current.write_bytes
        )
    answer.write_bytes(msgspec.json.encode(tally))
    return 0


def _last(current: Path) -> bytes:
    with contextlib.suppress(OSError):
        return current.read_bytes()
    return b""


# --- guided by coverage ---------------------------------------------------------------------------


def _atheris_is_there() -> bool:
    return (ATHERIS / "atheris").is_dir() or util.find_spec("atheris") is not None


def _guided(name: str, given: argparse.Namespace) -> Tally:
    tally = Tally(name, "guided", seconds=given.seconds)
    artifacts = BUILD / "found" / name
    artifacts.mkdir(parents=True, exist_ok=True)
    before = set(artifacts.iterdir())
    command = [
        sys.executable, "-m", "tests.fuzz.guided", name, str(BUILD / "corpus" / name),
        f"-max_total_time={max(int(given.seconds), 1)}", f"-seed={given.seed}",
        f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-timeout=20",
        "-rss_limit_mb=3000", "-malloc_limit_mb=256", "-max_len=20000",
    ]  # fmt: skip
    path = os.pathsep.join([str(ATHERIS), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=given.seconds + PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        tally.findings.append(Finding("hang", "the process did not end", b""))
        return tally
    executed = _EXECUTED.search(done.stderr)
    tally.executions = int(executed[1]) if executed else 0
    if done.returncode or not executed:
        new = sorted(set(artifacts.iterdir()) - before)
        kind = _EXITS.get(done.returncode, "crash")
        data = new[0].read_bytes() if new else b""
        tally.findings.append(Finding(kind, done.stderr[-800:], data))  # type: ignore[arg-type]  # a Kind
    return tally


# --- the corpus -----------------------------------------------------------------------------------


def _write_seeds(targets: list[Target]) -> int:
    for target in targets:
        folder = CORPUS / target.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("seed-*"):
            path.unlink()
        for number, data in enumerate(target.seeds()):
            (folder / f"seed-{number}").write_bytes(data)
    return 0


def _again(name: str, path: Path) -> int:
    target = named(name)
    with target.open() as take:
        try:
            take(path.read_bytes())
        except target.refusals as error:
            print(f"refused: {type(error).__name__}: {error}")
        else:
            print("accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
