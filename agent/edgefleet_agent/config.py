"""Configuration of the agent: one TOML file, and environment variables over it.

Rules:

1. Everything has a default, so an enrolled device needs no file at all.
2. A name that is not known is refused: a typing mistake never silently leaves a default in force.
3. `EDGEFLEET_AGENT_<NAME>` overrides a top-level name, `EDGEFLEET_AGENT_<TABLE>_<NAME>` one of a
   table (`EDGEFLEET_AGENT_SOURCE_PATH`). Lists are written with commas; an empty variable stands
   for none where a setting may be none. Lists of tables stand in the file only.
"""

import difflib
import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field, inspect

from edgefleet_agent.errors import ConfigError
from edgefleet_agent.server import address
from edgefleet_agent.updating import maintenance
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

    def __post_init__(self) -> None:
        """Refuse an address that is none, or that other machines can reach."""
        if self.listen:
            address.parse(self.listen)


class LocalTopic(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that answers messages of a broker on this machine.

    Attributes:
        model: that answers.
        input: topic of JSON rows.
        output: topic of the answers; what could not be answered is told at `{output}/error`.
    """

    model: str
    input: str
    output: str

    @property
    def error(self) -> str:
        """Topic of what could not be answered."""
        return f"{self.output}/error"


class LocalBroker(Struct, frozen=True, forbid_unknown_fields=True):
    """A broker on this machine or in its network, for sensor pipelines; none without topics.

    Attributes:
        host: of the broker.
        port: of the broker.
        username: if it asks for one.
        password_file: that holds the password and nothing else.
        topics: `[[broker.topics]]` tables of `model`, `input` and `output`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: str | None = None
    password_file: str | None = None
    topics: list[LocalTopic] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse topics that are no names, or that would answer answers."""
        inputs = [topic.input for topic in self.topics]
        outputs = [name for topic in self.topics for name in (topic.output, topic.error)]
        for name in inputs + outputs:
            if not name or "+" in name or "#" in name or "\0" in name:
                raise ValueError(f"topic {name!r}: expected a name without '+' and '#'")
        if len(set(inputs)) != len(inputs):
            raise ValueError("two models have the same input topic; give each its own")
        both = sorted(set(inputs) & set(outputs))
        if both:
            raise ValueError(f"topic {both[0]!r} is an output too, and would answer its answers")


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


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the key is that renews this device's certificate and signs its statements.

    It counts at enrolment; the identity remembers it.

    Attributes:
        kind: `file` for the key of the certificate itself, or one that never leaves a `tpm` or a
            PKCS#11 token.
        tcti: how the TPM is reached (`device:/dev/tpmrm0`); empty for the system's own way.
        module: PKCS#11 library.
        token: label of the token.
        id: of the key in the token, hexadecimal; made if it is not there.
        pin_file: that holds the token's PIN and nothing else.
    """

    kind: Literal["file", "tpm", "pkcs11"] = "file"
    tcti: str = ""
    module: str = ""
    token: str = ""
    id: str = "ef01"
    pin_file: str = ""

    def __post_init__(self) -> None:
        """Refuse a token that cannot be found."""
        if self.kind == "pkcs11" and not (self.module and self.token and self.pin_file):
            raise ValueError("kind pkcs11 needs module, token and pin_file")


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
        board: a name out of `edgefleet_protocol.profiles.BOARDS`; none to look at the machine.
        runtimes: families that may be used; none for all that are installed.
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
    key: Key = field(default_factory=Key)
    logs: Logs = field(default_factory=Logs)

    @property
    def folder(self) -> Path:
        """The store as a path."""
        return Path(self.store)


class Setting(Struct, frozen=True):
    """One name of the configuration.

    Attributes:
        table: that it stands in, empty for the top level.
        kind: its type, as `msgspec.inspect` describes it.
        default: `msgspec.NODEFAULT` if it must be given.
    """

    table: str
    name: str
    kind: inspect.Type
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return ENVIRONMENT + "_".join(part for part in (self.table, self.name) if part).upper()

    @property
    def may_be_none(self) -> bool:
        """Whether none is a value of it."""
        return any(isinstance(kind, inspect.NoneType) for kind in _kinds(self.kind))

    @property
    def items(self) -> inspect.Type | None:
        """Type of its items if it is a list, else None."""
        lists = (kind for kind in _kinds(self.kind) if isinstance(kind, inspect.ListType))
        return next((kind.item_type for kind in lists), None)


def settings() -> Iterator[Setting]:
    """Yield every setting, in the order of the tables here."""
    for outer in _fields(Config):
        table = next((k for k in _kinds(outer.type) if isinstance(k, inspect.StructType)), None)
        if table is None:
            yield Setting("", outer.name, outer.type, _default(outer))
        else:
            for inner in table.fields:
                yield Setting(outer.name, inner.name, inner.type, _default(inner))


def store_of(overrides: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str:
    """Return the store whose `agent.toml` is read where no other file is named."""
    named: str | None = overrides.get("store") or environment.get(f"{ENVIRONMENT}STORE")
    return named or DEFAULT_STORE


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
        candidate = Path(store_of(given, environment)) / CONFIG_NAME
        try:
            path = candidate if candidate.is_file() else None
        except OSError as error:
            raise ConfigError(
                f"configuration {candidate} cannot be looked for: {error.strerror};"
                " run this as the owner of the store"
            ) from error
    values = _read(path) if path else {}
    origin = str(path) if path else "the environment"
    _apply_environment(values, environment)
    values.update(given)
    try:
        # Environment values are text, so numbers and booleans may come as text: not strict.
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"configuration from {origin} cannot be used: {error}{_nearest(str(error))}"
        ) from error
    maintenance.Windows.parse(config.maintenance.windows)
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
    machine = machine or platform.machine()
    # A 64-bit kernel may carry a 32-bit system, and with it 32-bit Python.
    if model.startswith("Raspberry Pi") and (machine.startswith("armv") or sys.maxsize < 2**32):
        return "rpi-32bit"
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
    return "generic-arm64" if machine in ("aarch64", "arm64") else "generic-x86_64"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    known = {setting.variable: setting for setting in settings()}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT):
            continue
        setting = known.get(variable)
        if setting is None:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"environment variable {variable} is no setting of the agent{hint}")
        if isinstance(setting.items, inspect.StructType):
            raise ConfigError(
                f"environment variable {variable}: [[{setting.table}.{setting.name}]] can only be"
                f" given in {CONFIG_NAME}"
            )
        place = values.setdefault(setting.table, {}) if setting.table else values
        if isinstance(place, dict):  # else it is refused below, with its place in the file
            place[setting.name] = _value(setting, text)


def _value(setting: Setting, text: str) -> object:
    """Return what a variable says; numbers and booleans stay text, `convert` reads them."""
    if not text.strip() and setting.may_be_none:
        return None
    if setting.items is not None:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _nearest(complaint: str) -> str:
    """Return a hint for a name that is not known, empty if that is not what is wrong."""
    found = re.search(r"unknown field `(\w+)`(?: - at `\$\.(\w+)`)?$", complaint)
    if found is None:
        return ""
    name, table = found[1], found[2] or ""
    names = {setting.name for setting in settings() if setting.table == table}
    if not table:
        names |= {setting.table for setting in settings() if setting.table}
    near = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(sorted(names))}"


def _fields(struct: type[Struct]) -> tuple[inspect.Field, ...]:
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)  # what a Struct is described by
    return kind.fields


def _kinds(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _default(described: inspect.Field) -> Any:
    if described.default_factory is not msgspec.NODEFAULT:
        return described.default_factory()
    return described.default
