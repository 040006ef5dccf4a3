"""What was seen of this device: the values that `probes` makes and `doctor` judges."""

from typing import Literal

from msgspec import Struct


class Store(Struct, frozen=True):
    """The folder of the agent.

    Attributes:
        closed: why it cannot be looked into; empty if it can.
        user: who looks.
        damaged: a sentence on each file that cannot be read.
        max_bytes: its quota, 0 for none.
    """

    path: str
    exists: bool
    closed: str = ""
    owner: str = ""
    user: str = ""
    writable: bool = False
    read_only: bool = False
    free_bytes: int = 0
    keep_free_bytes: int = 0
    used_bytes: int = 0
    max_bytes: int = 0
    damaged: list[str] = []


class Identity(Struct, frozen=True):
    """Key and certificate.

    Attributes:
        missing: why there is none; empty if there is one.
        faults: what does not fit together, a sentence each.
        not_before: Unix seconds, as `not_after`.
        key: where the key is that renews the certificate: `file`, `tpm` or `pkcs11`.
        authorities: of the hub that are trusted.
    """

    missing: str = ""
    faults: list[str] = []
    key_mode: int = 0o600
    not_before: float = 0.0
    not_after: float = 0.0
    key: str = "file"
    authorities: int = 1


class Clock(Struct, frozen=True):
    """The device's idea of the time.

    Attributes:
        offset_s: to the hub's clock, as just asked; None if it did not answer.
        heard_at: when the hub was heard last, None if never.
    """

    now: float
    offset_s: float | None = None
    heard_at: float | None = None


class Endpoint(Struct, frozen=True):
    """One address of the hub, and how far a connection came.

    Attributes:
        failed: the step that failed; None if none did.
    """

    name: str
    address: str
    failed: Literal["name", "connection", "tls", "certificate"] | None = None
    reason: str = ""


class Runtime(Struct, frozen=True):
    """An inference runtime.

    Attributes:
        version: empty if it is not installed.
        broken: why its import fails.
        needed_by: models of this device.
        name: of what is installed for the family; empty stands for the family's own.
    """

    family: str
    version: str = ""
    broken: str = ""
    needed_by: list[str] = []
    name: str = ""

    @property
    def title(self) -> str:
        """Name and version of what is installed."""
        return f"{self.name or self.family} {self.version}"


class Machine(Struct, frozen=True):
    """The board. None: it cannot tell."""

    memory_bytes: int
    free_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None


class Model(Struct, frozen=True):
    """One lane of a model.

    Attributes:
        release: that serves, None if none does.
        step: of the newest attempt.
        reason: why it ended as it did, or what it waits for.
        absent: files of the serving release that are missing or damaged.
    """

    name: str
    release: int | None
    step: str = ""
    reason: str = ""
    absent: list[str] = []


class Process(Struct, frozen=True):
    """The running agent.

    Attributes:
        running: whether an agent holds the store; None if this user cannot tell.
        unit: state of the systemd unit (`active`, `failed`, …), empty if there is none.
        watchdog: whether the unit has one.
        server: why the configured local server does not answer; empty if it does, None if none is
            configured.
    """

    running: bool | None
    unit: str = ""
    watchdog: bool = False
    server: str | None = None


class Facts(Struct, frozen=True):
    """Everything that was seen; what needs the store is None without one.

    Attributes:
        config: why the configuration cannot be used; empty if it can.
        config_path: where it is; empty if this user may not look for it.
        proxy: environment variables that name a proxy.
    """

    config: str
    config_path: str
    store: Store | None = None
    identity: Identity | None = None
    clock: Clock | None = None
    endpoints: list[Endpoint] = []
    proxy: list[str] = []
    runtimes: list[Runtime] = []
    machine: Machine | None = None
    models: list[Model] = []
    process: Process | None = None
