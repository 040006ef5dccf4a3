"""`edgefleet-agent`: enrol a device, run its agent, look at it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 hub not reachable, 4 claim refused.
"""

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefleet_agent import __version__, config, logs
from edgefleet_agent.errors import (
    AgentError,
    ClaimRefusedError,
    ConfigError,
    HubUnreachableError,
)

log = logging.getLogger("edgefleet_agent")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_CLAIM_REFUSED = 0, 1, 2, 3, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigError as error:
        return _fail(error, EXIT_USAGE)
    except HubUnreachableError as error:
        return _fail(error, EXIT_UNREACHABLE)
    except ClaimRefusedError as error:
        return _fail(error, EXIT_CLAIM_REFUSED)
    except AgentError as error:
        return _fail(error, EXIT_FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgefleet-agent", description="Run models on this device and keep them right."
    )
    parser.add_argument("--version", action="version", version=f"edgefleet-agent {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, help="agent.toml (default: in the store)")
    shared.add_argument("--store", help=f"folder of this agent (default: {config.DEFAULT_STORE})")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    enrol = commands.add_parser("enroll", parents=[shared], help="join a fleet with a claim token")
    enrol.add_argument("--hub", required=True, metavar="URL", help="https://HOST:PORT of the hub")
    enrol.add_argument("--token", required=True, metavar="CLAIM", help="claim token from the hub")
    enrol.add_argument("--board", help="kind of board (default: looked up on this machine)")
    enrol.add_argument("--force", action="store_true", help="replace an existing identity")
    enrol.set_defaults(run=_enrol)

    run = commands.add_parser("run", parents=[shared], help="run the agent until it is stopped")
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(run=_run)

    status = commands.add_parser("status", parents=[shared], help="show what this device runs")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)

    predict = commands.add_parser("predict", parents=[shared], help="answer rows of a file")
    predict.add_argument("model", metavar="MODEL")
    predict.add_argument("--input", type=Path, required=True, metavar="ROWS", help="CSV or NPZ")
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.set_defaults(run=_predict)
    return parser


def _load(options: argparse.Namespace) -> config.Config:
    overrides = {"store": options.store, "board": getattr(options, "board", None)}
    return config.load(options.config, overrides=overrides)


def _enrol(options: argparse.Namespace) -> int:
    # Modules that cost time to import are imported by the command that needs them.
    from edgefleet_agent import enrolment, files
    from edgefleet_agent.agent import device_profile

    settings = _load(options)
    claim = enrolment.parse_claim(options.token)
    profile = device_profile(settings)
    with files.locked(settings.folder):
        hub = enrolment.enrol(
            settings.folder,
            options.hub,
            claim,
            board=profile.board,
            runtimes=profile.runtimes,
            memory_bytes=profile.memory_bytes,
            force=options.force,
        )
    print(f"enrolled as {hub.device} ({profile.board}) with {hub.api_url}")
    print(f"start it with: edgefleet-agent run --store {settings.store}")
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    settings = _load(options)
    logs.set_up(as_json=settings.logs.json, verbose=options.verbose)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    from edgefleet_agent.agent import Agent

    agent = Agent(settings)
    agent.start()
    stopped.wait()
    log.info("stopping")
    agent.stop()
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from edgefleet_agent import offline

    found = offline.status(_load(options).folder)
    if options.json:
        print(json.dumps(found, indent=2))
        return EXIT_OK
    print(f"device {found['device']}, hub {found['hub']}, {found['reports_waiting']} reports wait")
    _print_table(found["models"])
    return EXIT_OK


def _predict(options: argparse.Namespace) -> int:
    from edgefleet_agent import offline
    from edgefleet_protocol.errors import ProtocolError

    try:
        found = offline.answer(_load(options).folder, options.model, options.input)
    except ProtocolError as error:
        return _fail(error, EXIT_FAILED)
    if options.json:
        print(json.dumps(found, indent=2))
        return EXIT_OK
    _print_table(
        [
            {"row": number, "label": row["label"], "score": f"{row['score']:.4f}"}
            for number, row in enumerate(found, start=1)
        ]
    )
    return EXIT_OK


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("no models")
        return
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    lines = [
        names,
        *([str(row[name] if row[name] is not None else "-") for name in names] for row in rows),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _fail(error: Exception, code: int) -> int:
    print(f"edgefleet-agent: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
