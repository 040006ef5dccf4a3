"""Configuration of the agent: one TOML file, and environment variables over it.

Rules:

1. Everything has a default, so an enrolled device needs no file at all.
2. A name that is not known is refused: a typing mistake never silently leaves a default in force.
3. `EDGEFLEET_AGENT_<NAME>` overrides a top-level name, `EDGEFLEET_AGENT_<TABLE>_<NAME>` one of a
   table (`EDGEFLEET_AGENT_SOURCE_PATH`). Lists are written with commas.
"""

import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_agent.errors import ConfigError
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.profiles import BOARDS

DEFAULT_STORE = "/var/lib/edgefleet"
CONFIG_NAME = "agent.toml"
ENVIRONMENT = "EDGEFLEET_AGENT_"
_DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
_MIB = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0)]
Bytes = Annotated[int, Meta(gt=0)]


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Where rows come from when no application calls the agent.

    Attributes:
        kind: `replay` reads a file again and again.
        path: CSV with a header, or NPZ with the arrays `rows` `(n, columns)` and, if there are
            labels, `labels` `(n,)`.
        model: that answers the rows.
        rows_per_s: how fast.
        label_column: column of a CSV that holds the true answer.
    """

    path: str
    model: str
    kind: Literal["replay"] = "replay"
    rows_per_s: Annotated[float, Meta(gt=0, le=1_000_000)] = 10.0
    label_column: str | None = None


class SampleConsent(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the owner of this device lets labelled rows leave it."""

    consent: bool = False


class Budgets(Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent may use.

    Attributes:
        trial_timeout_s: for loading a candidate and running its golden vectors.
        trial_memory_bytes: that the trial process may add to what its runtime needs empty.
        outbox_max_bytes: of reports that wait for the hub.
        fetch_stall_s: connected time without one new block after which a download is given up.
        recent_rows_bytes: of memory for the latest rows of a model, kept for late labels.
    """

    trial_timeout_s: Seconds = 120.0
    trial_memory_bytes: Bytes = 512 * _MIB
    outbox_max_bytes: Bytes = 16 * _MIB
    fetch_stall_s: Seconds = 600.0
    recent_rows_bytes: Bytes = 4 * _MIB


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration.

    Attributes:
        store: folder that holds everything the agent keeps.
        board: a name out of `edgefleet_protocol.profiles.BOARDS`; None to look at the machine.
        runtimes: families that may be used; None for all that are installed.
        heartbeat_s: between two state messages when nothing changes.
        log_json: one JSON object a line instead of text.
    """

    store: str = DEFAULT_STORE
    board: str | None = None
    runtimes: list[Runtime] | None = None
    heartbeat_s: Seconds = 30.0
    log_json: bool = False
    source: Source | None = None
    samples: SampleConsent = field(default_factory=SampleConsent)
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def folder(self) -> Path:
        """The store as a path."""
        return Path(self.store)


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read the configuration.

    Args:
        path: of the TOML file. None: `agent.toml` in the store if there is one.
        environment: where the `EDGEFLEET_AGENT_*` variables are.
        overrides: top-level values given on the command line; they win. None values are left out.

    Raises:
        ConfigError: unreadable, an unknown name, or a value out of its range.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    if path is None:
        store = given.get("store") or environment.get(f"{ENVIRONMENT}STORE") or DEFAULT_STORE
        candidate = Path(store) / CONFIG_NAME
        path = candidate if candidate.is_file() else None
    values = _read(path) if path else {}
    origin = str(path) if path else "the environment"
    _apply_environment(values, environment)
    values.update(given)
    try:
        # Environment values are text, so numbers and booleans may come as text: not strict.
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration from {origin} cannot be used: {error}") from error
    if config.board is not None and config.board not in BOARDS:
        raise ConfigError(
            f"configuration from {origin}: unknown board {config.board!r};"
            f" expected one of {', '.join(sorted(BOARDS))}"
        )
    return config


def detect_board(machine: str | None = None, model_file: Path = _DEVICE_TREE_MODEL) -> str:
    """Return the name of the board that this process runs on.

    Args:
        machine: as `platform.machine()` gives it.
        model_file: the device tree's model string, which ends in a zero byte.
    """
    try:
        model = model_file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        model = ""  # not a device-tree machine
    for prefix, board in (
        ("Raspberry Pi Zero 2", "rpi-zero2w"),
        ("Raspberry Pi 3", "rpi3"),
        ("Raspberry Pi 4", "rpi4"),
        ("Raspberry Pi 5", "rpi5"),
        ("NVIDIA Jetson Nano", "jetson-nano"),
        ("NVIDIA Jetson Orin Nano", "jetson-orin-nano"),
    ):
        if model.startswith(prefix):
            return board
    machine = machine or platform.machine()
    return "generic-arm64" if machine in ("aarch64", "arm64") else "generic-x86_64"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    tables = {"SOURCE": Source, "SAMPLES": SampleConsent, "BUDGETS": Budgets}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT):
            continue
        name = variable.removeprefix(ENVIRONMENT)
        table, _, rest = name.partition("_")
        if table in tables and rest:
            values.setdefault(table.lower(), {})[rest.lower()] = text
        elif name == "RUNTIMES":
            values["runtimes"] = [item.strip() for item in text.split(",") if item.strip()]
        else:
            values[name.lower()] = text
