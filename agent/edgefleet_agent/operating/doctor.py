"""What is wrong with this device, in plain words, and what to do about it. Decisions only.

`probes` looks; `findings` judges what was seen. Rules:

1. Each finding says what is, and what a person does about it, in one line each.
2. An *error* keeps the device from its work, now or within days; a *warning* will, or takes its
   room to move; a *note* is something to know, among it what this user may not look at.
3. What could not be looked at is never "fine".
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from edgefleet_agent.operating.facts import (
    Clock,
    Endpoint,
    Facts,
    Identity,
    Machine,
    Model,
    Process,
    Runtime,
    Store,
)

# A certificate is renewed when a third of its life is left; with less than this, that has failed.
CERTIFICATE_WARNING_SHARE = 0.2
# TUF metadata lives for a day and TLS is strict about its days, so minutes do not matter yet.
CLOCK_WARNING_S = 60.0
CLOCK_ERROR_S = 3600.0
# Before this the clock was never set: no agent is older than its source.
FIRST_PLAUSIBLE = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
LAST_PLAUSIBLE = datetime(2038, 1, 1, tzinfo=UTC).timestamp()
SILENCE_WARNING_S = 3600.0
MEMORY_WARNING_SHARE = 0.05
# Boards throttle between 80 and 85 °C.
HOT_C = 80.0
_MIB = 1024 * 1024
_DAY_S = 86_400.0

_PLACES = {"tpm": "the TPM", "pkcs11": "a PKCS#11 token"}

Severity = Literal["ok", "note", "warning", "error"]


class Finding(Struct, frozen=True, omit_defaults=True):
    """One line of the doctor.

    Attributes:
        about: part of the device.
        text: what is.
        remedy: what to do; empty if there is nothing to do.
    """

    severity: Severity
    about: str
    text: str
    remedy: str = ""


def findings(facts: Facts) -> list[Finding]:
    """Judge what was seen."""
    return list(_all(facts))


def is_healthy(found: list[Finding]) -> bool:
    """Tell whether nothing keeps the device from its work."""
    return all(finding.severity != "error" for finding in found)


def _all(facts: Facts) -> Iterator[Finding]:
    if facts.config:
        yield Finding("error", "configuration", facts.config, "correct it, then run doctor again")
        return
    if facts.config_path:
        yield Finding("ok", "configuration", facts.config_path)
    if facts.store:
        yield from _store(facts.store)
    if facts.identity and facts.clock:
        yield from _identity(facts.identity, facts.clock.now)
    if facts.clock:
        yield from _clock(facts.clock)
    yield from _network(facts.endpoints, facts.proxy)
    for runtime in facts.runtimes:
        yield from _runtime(runtime)
    if facts.runtimes and not any(runtime.version for runtime in facts.runtimes):
        yield Finding(
            "error",
            "runtimes",
            "no inference runtime is installed, so no model can run",
            "pip install 'edgefleet-agent[onnxruntime]' or 'edgefleet-agent[litert]'",
        )
    if facts.machine:
        yield from _machine(facts.machine)
    for model in facts.models:
        yield from _model(model)
    if facts.process:
        yield from _process(facts.process, enrolled=bool(facts.identity))


def _store(store: Store) -> Iterator[Finding]:
    if not store.exists:
        yield Finding(
            "error",
            "store",
            f"{store.path} does not exist",
            "enrol this device (edgefleet-agent enroll), or name the right store with --store",
        )
        return
    if store.closed:
        yield Finding(
            "note",
            "store",
            f"{store.path} cannot be looked into as {store.user}: {store.closed}",
            f"sudo -u {store.owner or 'edgefleet'} edgefleet-agent doctor",
        )
        return
    troubled = False
    for text in store.damaged:
        troubled = True
        yield Finding(
            "error", "store", text, "the agent fetches it again; if it comes back, change the card"
        )
    if store.read_only:
        troubled = True
        yield Finding(
            "error",
            "store",
            f"the file system of {store.path} is read-only; models serve, nothing can be updated",
            "look at `dmesg` for errors of the card; remount it, or change it",
        )
    elif not store.writable:
        troubled = True
        is_owner = store.user == store.owner
        yield Finding(
            "error" if is_owner else "note",
            "store",
            f"{store.user} may not write to {store.path}, which belongs to {store.owner}",
            f"chmod u+rwx {store.path}" if is_owner else f"run the agent as {store.owner}",
        )
    if store.free_bytes < store.keep_free_bytes:
        troubled = True
        yield Finding(
            "error",
            "store",
            f"{_mib(store.free_bytes)} are free on its file system;"
            f" {_mib(store.keep_free_bytes)} are kept free for others, so nothing is downloaded",
            "make room, or lower [storage] keep_free_bytes",
        )
    if store.max_bytes and store.used_bytes > store.max_bytes:
        troubled = True
        yield Finding(
            "warning",
            "store",
            f"it takes {_mib(store.used_bytes)} of the {_mib(store.max_bytes)} it may take",
            "raise [storage] max_bytes, or withdraw a model",
        )
    if not troubled:
        yield Finding(
            "ok", "store", f"{store.path} of {store.owner}, {_mib(store.free_bytes)} free"
        )


def _identity(identity: Identity, now: float) -> Iterator[Finding]:
    if identity.missing:
        yield Finding(
            "error",
            "identity",
            identity.missing,
            "edgefleet-agent enroll --hub URL --token CLAIM",
        )
        return
    for text in identity.faults:
        yield Finding("error", "identity", text, "enrol again with --force and a new claim token")
    if identity.key_mode & 0o077:
        yield Finding(
            "error",
            "identity",
            f"the private key can be read by others (mode {identity.key_mode:04o})",
            "chmod 600 identity/device.key in the store; if others had access, revoke and re-enrol",
        )
    if identity.faults:
        return
    left_s = identity.not_after - now
    days = f"{_date(identity.not_after)} ({left_s / _DAY_S:.0f} days)"
    life_s = identity.not_after - identity.not_before
    renews = (
        "the agent renews it by itself when it runs and reaches the hub; see edgefleet-agent logs"
        " for why it could not. If the hub refuses, enrol again with --force"
    )
    if now < identity.not_before:
        yield Finding(
            "error",
            "identity",
            f"the clock says {_date(now)}, before the certificate begins"
            f" ({_date(identity.not_before)}); every connection fails",
            "set the clock (timedatectl set-ntp true)",
        )
    elif left_s <= 0:
        expired = f"the certificate expired on {_date(identity.not_after)}"
        yield Finding("error", "identity", f"{expired}; the hub does not let it in", renews)
    elif left_s <= life_s * CERTIFICATE_WARNING_SHARE:
        yield Finding("warning", "identity", f"the certificate expires on {days}", renews)
    else:
        key = "" if identity.key == "file" else f", renewed by a key in {_PLACES[identity.key]}"
        yield Finding("ok", "identity", f"certificate good until {days}{key}")
    if identity.authorities > 1:
        text = f"{identity.authorities} authorities of the hub are trusted: one replaces the other"
        yield Finding("note", "identity", text)


def _clock(clock: Clock) -> Iterator[Finding]:
    sync = "switch time synchronisation on (timedatectl set-ntp true) and see that it gets through"
    if not FIRST_PLAUSIBLE <= clock.now < LAST_PLAUSIBLE:
        yield Finding("error", "clock", f"the clock says {_date(clock.now)}", sync)
    elif clock.offset_s is None:
        yield Finding("note", "clock", "the hub could not be asked for the time")
    elif abs(clock.offset_s) >= CLOCK_WARNING_S:
        severity: Severity = "error" if abs(clock.offset_s) >= CLOCK_ERROR_S else "warning"
        side = "ahead of" if clock.offset_s > 0 else "behind"
        text = f"the clock is {_span(abs(clock.offset_s))} {side} the hub's"
        yield Finding(severity, "clock", text, sync)
    else:
        yield Finding("ok", "clock", f"within {abs(clock.offset_s):.0f} s of the hub's")
    if clock.heard_at is None:
        yield Finding("note", "hub", "the hub has not acknowledged anything from this device yet")
    elif clock.now - clock.heard_at >= SILENCE_WARNING_S:
        yield Finding(
            "warning",
            "hub",
            f"the hub was heard last {_span(clock.now - clock.heard_at)} ago",
            "see the network lines; models serve without the hub, reports wait",
        )


_REMEDIES = {
    "name": "look at the DNS of this network (resolvectl status), or at the host name of the hub",
    "connection": "see that the hub runs, and that no firewall is in the way of this port",
    "tls": "see that nothing on the way opens TLS, and that this is the hub it was enrolled at",
    "certificate": "the hub does not know this certificate (any more): enrol again with --force",
}


def _network(endpoints: list[Endpoint], proxy: list[str]) -> Iterator[Finding]:
    for endpoint in endpoints:
        if endpoint.failed is None:
            yield Finding("ok", "network", f"{endpoint.name} at {endpoint.address}")
        else:
            text = f"{endpoint.name} at {endpoint.address}: {endpoint.reason}"
            yield Finding("error", "network", text, _REMEDIES[endpoint.failed])
    if proxy and any(endpoint.failed for endpoint in endpoints):
        yield Finding(
            "note",
            "network",
            f"{', '.join(proxy)} name a proxy; the agent does not use one",
            "let this device reach the hub's two ports directly",
        )


def _runtime(runtime: Runtime) -> Iterator[Finding]:
    users = ", ".join(runtime.needed_by)
    if runtime.version and not runtime.broken:
        yield Finding("ok", "runtimes", runtime.title)
    elif runtime.version:
        yield Finding(
            "error" if users else "warning",
            "runtimes",
            f"{runtime.title} cannot be imported: {runtime.broken}",
            f"reinstall it for this board and Python{'; needed by ' + users if users else ''}",
        )
    elif users:
        yield Finding(
            "error",
            "runtimes",
            f"{runtime.family} is not installed; needed by {users}",
            f"pip install 'edgefleet-agent[{runtime.family}]'",
        )


def _machine(machine: Machine) -> Iterator[Finding]:
    seen = []
    if machine.free_bytes is not None:
        seen.append(f"{_mib(machine.free_bytes)} of {_mib(machine.memory_bytes)} memory free")
        if machine.free_bytes < machine.memory_bytes * MEMORY_WARNING_SHARE:
            yield Finding(
                "warning",
                "board",
                f"only {seen.pop()}",
                "a trial may be refused for want of memory; stop what else runs",
            )
    if machine.temperature_c is not None:
        seen.append(f"{machine.temperature_c:.0f} °C")
        if machine.temperature_c >= HOT_C:
            yield Finding("warning", "board", f"it is at {seen.pop()}", "cool it")
    if machine.throttled:
        yield Finding(
            "warning",
            "board",
            "it slows itself down, or has since it was switched on (heat, or too weak a supply)",
            "use the supply that the maker names; cool it",
        )
    if seen:
        yield Finding("ok", "board", ", ".join(seen))


def _model(model: Model) -> Iterator[Finding]:
    if model.absent:
        yield Finding(
            "error",
            f"model {model.name}",
            f"files of release {model.release} are missing or damaged: {', '.join(model.absent)}",
            "restart the agent: it serves the previous release and fetches them again",
        )
    elif model.release is None:
        told = f": {model.step}, {model.reason}" if model.reason else ""
        yield Finding("warning", f"model {model.name}", f"no release serves{told}")
    elif model.step in ("failed", "rejected", "rolled_back"):
        yield Finding(
            "warning",
            f"model {model.name}",
            f"release {model.release} serves; the last update {model.step}: {model.reason}",
            "give the reason to whoever released it; a new attempt is begun at the hub",
        )
    else:
        waits = f"; {model.reason}" if model.reason else ""
        yield Finding("ok", f"model {model.name}", f"release {model.release} serves{waits}")


def _process(process: Process, *, enrolled: bool) -> Iterator[Finding]:
    start = "sudo systemctl enable --now edgefleet-agent"
    if process.running is None:
        yield Finding("note", "agent", "whether it runs cannot be told as this user")
    elif process.running:
        yield Finding("ok", "agent", "it runs")
    elif enrolled:
        remedy = start if process.unit else "edgefleet-agent run"
        yield Finding("error", "agent", "it does not run", remedy)
    if process.unit == "failed":
        why = "journalctl -u edgefleet-agent -n 50"
        yield Finding("error", "systemd", "the unit edgefleet-agent has failed", why)
    elif process.running and process.unit and process.unit not in ("active", "activating"):
        yield Finding("warning", "systemd", f"the agent was not started by its unit, which is"
                      f" {process.unit}: nobody starts it again", start)  # fmt: skip
    elif process.unit == "active" and not process.watchdog:
        yield Finding(
            "warning",
            "systemd",
            "the unit has no watchdog, so an agent that hangs goes on hanging",
            "take the unit file of this version (packaging/edgefleet-agent.service)",
        )
    if process.server and process.running:
        yield Finding(
            "error", "server", process.server, "see [server] listen, and edgefleet-agent logs"
        )
    elif process.server == "" and process.running:
        yield Finding("ok", "server", "the local inference server answers")


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / _MIB:.0f} MiB"


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _span(seconds: float) -> str:
    for size_s, name in ((_DAY_S, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {name}"
    return f"{seconds:.0f} seconds"
