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
_TABLES = (
    "SOURCE",
    "SAMPLES",
    "BUDGETS",
    "NETWORK",
    "MAINTENANCE",
    "STORAGE",
    "EXECUTION",
    "SERVER",
    "BROKER",
    "LOGS",
)
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
    """Whether the owner of this device lets labelled rows leave it.

    Attributes:
        consent: nothing is kept or sent without it.
        redact: `module:function`, called with each row that would be sent; see `samples`.
    """

    consent: bool = False
    redact: str | None = None


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """What downloads may cost, by class of link. 0 stands for no limit.

    Attributes:
        link: `auto` asks the system which class the link is of.
        metered_bytes_per_day: of artifacts over a metered link, in any 24 hours.
        unmetered_bytes_per_day: likewise over any other link.
    """

    link: Literal["auto", "metered", "unmetered"] = "auto"
    metered_bytes_per_day: Annotated[int, Meta(ge=0)] = 64 * _MIB
    unmetered_bytes_per_day: Annotated[int, Meta(ge=0)] = 0


class Maintenance(Struct, frozen=True, forbid_unknown_fields=True):
    """When a new release may be tried and switched to; downloads are not bound to it.

    Attributes:
        windows: `Sat Sun 02:00-05:00`, `Mon-Fri 22:00-04:00` or `01:00-03:00`, in the device's own
            time zone; none for any time.
    """

    windows: list[str] = field(default_factory=list)


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """What the store may take of the disk.

    Attributes:
        max_bytes: of model files and downloads together; 0 for no quota.
        keep_free_bytes: of the file system, left for everybody else.
    """

    max_bytes: Annotated[int, Meta(ge=0)] = 0
    keep_free_bytes: Annotated[int, Meta(ge=0)] = 32 * _MIB


class Execution(Struct, frozen=True, forbid_unknown_fields=True):
    """How models are run.

    Attributes:
        threads: of one call; 0 takes what suits the board.
        providers: ONNX Runtime's execution providers in order of preference; empty takes the order
            that suits the board (TensorRT, CUDA, CPU), as far as they are installed.
    """

    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    providers: list[str] = field(default_factory=list)


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """The local server of the Open Inference Protocol.

    Attributes:
        listen: `127.0.0.1:8500`, `[::1]:8500` or `unix:/run/edgefleet/inference.sock`; empty for
            no server. Other addresses than the machine's own are refused.
        max_request_bytes: of one request's body.
    """

    listen: str = ""
    max_request_bytes: Bytes = 64 * _MIB


class LocalTopic(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that answers messages of a broker on this machine.

    Attributes:
        model: that answers.
        input: topic of JSON rows.
        output: topic of the answers.
    """

    model: str
    input: str
    output: str


class LocalBroker(Struct, frozen=True, forbid_unknown_fields=True):
    """A broker on this machine or in its network, for sensor pipelines; none without topics."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: str | None = None
    password_file: str | None = None
    topics: list[LocalTopic] = field(default_factory=list)


class Logs(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the log goes. Standard error always has it; the file is what `logs` shows.

    Attributes:
        json: one JSON object a line instead of text.
        max_bytes: of `logs/agent.log` in the store before it is rotated; 0 for no file.
        keep: rotated files.
    """

    json: bool = False
    max_bytes: Annotated[int, Meta(ge=0)] = 2 * _MIB
    keep: Annotated[int, Meta(ge=1, le=100)] = 3


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
    """

    store: str = DEFAULT_STORE
    board: str | None = None
    runtimes: list[Runtime] | None = None
    heartbeat_s: Seconds = 30.0
    source: Source | None = None
    samples: SampleConsent = field(default_factory=SampleConsent)
    budgets: Budgets = field(default_factory=Budgets)
    network: Network = field(default_factory=Network)
    maintenance: Maintenance = field(default_factory=Maintenance)
    storage: Storage = field(default_factory=Storage)
    execution: Execution = field(default_factory=Execution)
    server: Server = field(default_factory=Server)
    broker: LocalBroker = field(default_factory=LocalBroker)
    logs: Logs = field(default_factory=Logs)

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
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT):
            continue
        name = variable.removeprefix(ENVIRONMENT)
        table, _, rest = name.partition("_")
        place, key = (
            (values.setdefault(table.lower(), {}), rest.lower())
            if table in _TABLES and rest
            else (values, name.lower())
        )
        listed = key in ("runtimes", "providers", "windows")
        place[key] = [i.strip() for i in text.split(",") if i.strip()] if listed else text
