"""`edgefleet-agent`: enrol a device, run its agent, look at it, find out what is wrong with it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 hub not reachable, 4 claim or serial
number refused, 5 a person at the hub has to accept this device's key first.
"""

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import pwd
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefleet_agent import __version__, config
from edgefleet_agent.errors import (
    AgentError,
    ApprovalPendingError,
    ClaimRefusedError,
    ConfigError,
    HubUnreachableError,
    StoreError,
)
from edgefleet_agent.operating import logs

if TYPE_CHECKING:
    from edgefleet_agent.trusting.identity import AnchorPlace

log = logging.getLogger("edgefleet_agent")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_CLAIM_REFUSED = 0, 1, 2, 3, 4
EXIT_WAITS = 5
_ASK_AGAIN_S = 5.0
_FOLLOW_S = 0.2
_STDERR = 2


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
    except ApprovalPendingError as error:
        return _fail(error, EXIT_WAITS)
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

    enrol = commands.add_parser(
        "enroll", parents=[shared], help="join a fleet with a claim token or a serial number"
    )
    enrol.add_argument("--hub", required=True, metavar="URL", help="https://HOST:PORT of the hub")
    enrol.add_argument("--token", metavar="CLAIM", help="claim token from the hub")
    enrol.add_argument(
        "--ca-fingerprint",
        metavar="SHA256",
        help="of the hub's CA, to enrol with the serial number that the hub expects",
    )
    enrol.add_argument("--serial", help="serial number (default: the board's)")
    enrol.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for a person at the hub to accept this device's key",
    )
    enrol.add_argument("--board", help="kind of board (default: looked up on this machine)")
    enrol.add_argument("--force", action="store_true", help="replace an existing identity")
    enrol.set_defaults(run=_enrol)

    key = commands.add_parser(
        "key", parents=[shared], help="make the key in this device's TPM or token, and show it"
    )
    key.set_defaults(run=_key)

    run = commands.add_parser("run", parents=[shared], help="run the agent until it is stopped")
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(run=_run)

    status = commands.add_parser("status", parents=[shared], help="show what this device runs")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--running", action="store_true", help="fail if the agent does not run, for health checks"
    )
    status.set_defaults(run=_status)

    doctor = commands.add_parser(
        "doctor", parents=[shared], help="say what is wrong, and what to do about it"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--deep", action="store_true", help="hash all files of all models too")
    doctor.set_defaults(run=_doctor)

    back = commands.add_parser(
        "rollback", parents=[shared], help="go back to the release before the one that serves"
    )
    back.add_argument("model", metavar="MODEL")
    back.add_argument("--reason", default="", help="for the log and the hub")
    back.set_defaults(run=_rollback)

    log_files = commands.add_parser("logs", parents=[shared], help="show the log of the store")
    log_files.add_argument("--follow", action="store_true", help="go on with what is written")
    log_files.add_argument("--lines", type=int, default=50, metavar="N", help="newest N (50)")
    log_files.add_argument(
        "--since", type=_moment, metavar="WHEN", help="90s, 10m, 2h, 3d ago, or 2026-01-31T12:00"
    )
    log_files.set_defaults(run=_logs)

    predict = commands.add_parser("predict", parents=[shared], help="answer rows of a file")
    predict.add_argument("model", metavar="MODEL")
    predict.add_argument("--input", type=Path, required=True, metavar="ROWS", help="CSV or NPZ")
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.set_defaults(run=_predict)
    return parser


def _load(options: argparse.Namespace) -> config.Config:
    overrides = {"store": options.store, "board": getattr(options, "board", None)}
    return config.load(options.config, overrides=overrides)


def _own_store(options: argparse.Namespace) -> config.Config:
    """Load the configuration of a command that writes to the store.

    Raises:
        ConfigError: if root would leave files there that the store's owner cannot use.
    """
    settings = _load(options)
    owner = settings.folder.stat().st_uid if settings.folder.is_dir() else os.geteuid()
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise ConfigError(
            f"{settings.folder} belongs to {name}, and what root writes there {name} could not"
            f" use; run this as {name}: sudo -u '{name}' edgefleet-agent …"
        )
    return settings


def _enrol(options: argparse.Namespace) -> int:
    # Modules that cost time to import are imported by the command that needs them.
    from edgefleet_agent import files
    from edgefleet_agent.agent import device_profile
    from edgefleet_agent.trusting import enrolment

    settings = _own_store(options)
    if options.token and not (options.serial or options.ca_fingerprint):
        ticket: enrolment.Claim | enrolment.Announced = enrolment.parse_claim(options.token)
    elif options.ca_fingerprint and not options.token:
        serial = options.serial or enrolment.read_serial()
        ticket = enrolment.parse_announced(serial, options.ca_fingerprint)
    else:
        raise ConfigError("enroll needs --token, or --ca-fingerprint for a serial number")
    profile = device_profile(settings)
    machine = enrolment.Machine(profile.board, profile.runtimes, profile.memory_bytes)
    until = time.monotonic() + options.wait
    while True:
        try:
            with files.locked(settings.folder):
                anchor = _anchor(settings)
                hub = enrolment.enrol(
                    settings.folder,
                    options.hub,
                    ticket,
                    machine,
                    anchor=anchor,
                    force=options.force,
                )
            break
        except ApprovalPendingError as error:
            if time.monotonic() >= until:
                raise
            print(error, file=sys.stderr, flush=True)
            time.sleep(min(_ASK_AGAIN_S, max(until - time.monotonic(), 0.0)))
    print(f"enrolled as {hub.device} ({profile.board}) with {hub.api_url}")
    print(f"start it with: edgefleet-agent run --store {settings.store}")
    return EXIT_OK


def _anchor(settings: config.Config) -> "AnchorPlace | None":
    """Return where the key in hardware is that `[key]` names, None if it is a file."""
    from edgefleet_agent.trusting import anchors, identity

    key = settings.key
    if key.kind == "file":
        return None
    folder = (settings.folder / identity.FOLDER).resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return identity.AnchorPlace(
        key.kind,
        file=str(folder / anchors.TPM_KEY) if key.kind == "tpm" else "",
        tcti=key.tcti,
        module=key.module,
        token=key.token,
        id=key.id,
        pin_file=key.pin_file,
    )


def _key(options: argparse.Namespace) -> int:
    from edgefleet_agent import files
    from edgefleet_agent.trusting import anchors

    settings = _own_store(options)
    with files.locked(settings.folder):
        place = _anchor(settings)
        if place is None:
            raise ConfigError(
                "[key] kind is file: a key that is a file is made at each enrolment; set it to tpm"
                " or pkcs11"
            )
        anchors.make(place)
    print(anchors.fingerprint(place))
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    from edgefleet_agent.operating import supervision
    from edgefleet_agent.trusting import identity

    settings = _own_store(options)
    known = identity.load(settings.folder)
    logs.set_up(settings.logs, device=known.hub.device, verbose=options.verbose)
    # A runtime that crashes, or systemd's watchdog, leaves the stacks of all threads behind.
    faulthandler.enable(file=_STDERR)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    from edgefleet_agent.agent import Agent

    supervisor = supervision.Supervisor()
    watchdog = supervision.Watchdog(
        supervisor,
        link_alive=lambda: agent.link_alive(),
        status=lambda: f"{len(agent.models())} models serve",
    )
    agent = Agent(settings, alive=watchdog.alive)
    # Now that the store is this process's own, so is its log file.
    logs.set_up(settings.logs, settings.folder, device=known.hub.device, verbose=options.verbose)
    log.info("edgefleet-agent %s starts", __version__)
    agent.start()
    supervisor.ready(f"{len(agent.models())} models serve")
    watchdog.start()
    stopped.wait()
    log.info("stopping")
    supervisor.stopping()
    watchdog.stop()
    agent.stop()
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from edgefleet_agent.operating import offline

    found = offline.status(_load(options))
    code = EXIT_FAILED if options.running and found["running"] is False else EXIT_OK
    if options.json:
        print(json.dumps(found, indent=2))
        return code
    runs = {True: "runs", False: "does not run", None: "may run (this user cannot tell)"}
    print(f"device {found['device']}, hub {found['hub']}; the agent {runs[found['running']]}")
    waiting = found["reports_waiting"]
    print(f"last heard from the hub: {_ago(found['heard_at'])}; reports waiting: {waiting}")
    left = found["bytes_left"]
    budget = "no limit" if left is None else f"{left / 1024 / 1024:.1f} MiB left for downloads"
    print(f"link {found['link']}, {budget}")
    print(_certificate_words(found["certificate"]))
    _print_table(found["models"])
    return code


def _certificate_words(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "certificate: cannot be read; see edgefleet-agent doctor"
    days = (certificate["not_after"] - time.time()) / 86_400
    ends = f"ends in {days:.1f} days" if days >= 0 else f"ended {-days:.1f} days ago"
    trusted = len(certificate["authorities"])
    return f"certificate {ends}; key: {certificate['key']}; authorities trusted: {trusted}"


def _doctor(options: argparse.Namespace) -> int:
    import msgspec

    from edgefleet_agent.operating import doctor, probes

    overrides = {"store": options.store}
    found = doctor.findings(probes.look(options.config, overrides, deep=options.deep))
    if options.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        for finding in found:
            print(f"{finding.severity:<8}{finding.about}: {finding.text}")
            if finding.remedy:
                print(f"{'':<8}→ {finding.remedy}")
    return EXIT_OK if doctor.is_healthy(found) else EXIT_FAILED


def _rollback(options: argparse.Namespace) -> int:
    from edgefleet_agent.operating import offline

    who = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"user {os.getuid()}"
    reason = f"rolled back on the device by {who}"
    reason += f": {options.reason}" if options.reason else ""
    print(offline.roll_back(_own_store(options), options.model, reason))
    return EXIT_OK


def _logs(options: argparse.Namespace) -> int:
    settings = _load(options)
    try:
        shown = logs.read(settings.folder, lines=options.lines, since=options.since)
        there = bool(logs.files(settings.folder))
    except OSError as error:
        raise StoreError(
            f"the log cannot be read: {error}; run this as the agent's user"
        ) from error
    if not settings.logs.max_bytes:
        print(
            "edgefleet-agent: no log file is kept ([logs] max_bytes = 0); under systemd see"
            " journalctl -u edgefleet-agent, in a container its own log",
            file=sys.stderr,
        )
    elif not there and not options.follow:
        print(f"edgefleet-agent: no log yet in {settings.folder / logs.FOLDER}", file=sys.stderr)
    for line in shown:
        print(line)
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            for line in logs.follow(settings.folder, _wait_a_moment):
                print(line, flush=True)
    return EXIT_OK


def _wait_a_moment() -> bool:
    time.sleep(_FOLLOW_S)
    return True


def _moment(text: str) -> float:
    """Return the Unix time that `--since` names."""
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found:
        return time.time() - int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; expected for example 10m, 2h, 3d or 2026-01-31T12:00"
        ) from None


def _ago(at: float | None) -> str:
    if at is None:
        return "never"
    seconds = max(time.time() - at, 0.0)
    for size_s, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def _predict(options: argparse.Namespace) -> int:
    from edgefleet_agent.operating import offline
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
