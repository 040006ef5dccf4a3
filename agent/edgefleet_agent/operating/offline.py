"""Looking at a store from a process that is not its agent: what it holds, what it answers.

One thing can be changed from here: a person at the device may go back to the previous release. A
running agent is asked to (`byhand`); when none runs, the journal is changed here, under the store's
lock, by the same decision.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import files, outbox
from edgefleet_agent.config import Config
from edgefleet_agent.downloading import allowance
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import NotServingError, StoreError
from edgefleet_agent.operating import health
from edgefleet_agent.trusting import identity, renewal
from edgefleet_agent.updating import byhand, update
from edgefleet_agent.updating.journal import Journal
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.messages import Refusal, Step

# The engine looks at each of its turns; the rest is for a busy one.
ROLLBACK_TIMEOUT_S = 30.0
_POLL_S = 0.1


def answer(store: Path, model: str, path: Path) -> list[dict[str, Any]]:
    """Answer the rows of a file with the release that serves in the store.

    Returns:
        One mapping a row: `label` (None without classes), `score`, `scores`, `release`.

    Raises:
        NotServingError: if the store has no such model.
        SourceError: if the rows cannot be read.
        ModelError, StoreError: if the model cannot be loaded.
    """
    # Only this command needs them, and they cost time.
    import numpy as np

    from edgefleet_agent import runtimes, tables
    from edgefleet_protocol import rows

    slots = Slots(store)
    journal = slots.peek().get(model)
    serving = journal.serving if journal else None
    if serving is None:
        raise NotServingError(f"{store} serves no model {model!r}")
    bundle = slots.manifest(serving.slot.manifest)
    bad = [file.role for file in slots.absent(bundle)]
    if bad:
        raise StoreError(f"{model} release {serving.slot.release}: no {', '.join(bad)} file")
    session = runtimes.load_bundle(bundle, slots.path(bundle.file("model").digest))
    signature = bundle.signature
    table = tables.read(path)
    scores = session.run(rows.bind(signature, tables.rows_for(table, signature)))
    labels = signature.classes if signature.task == "classification" else []
    tops = np.argmax(scores, axis=1) if labels else np.zeros(len(scores), np.int64)
    return [
        {
            "label": labels[top] if labels else None,
            "score": values[top],
            "scores": values,
            "release": serving.slot.release,
        }
        for top, values in zip(tops.tolist(), scores.tolist(), strict=True)
    ]


def status(config: Config, *, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Return what a person wants to know of a store.

    Args:
        config: of the agent.
        clock: Unix seconds.

    Raises:
        EnrolmentError: if the device is not enrolled.
        StoreError: if a journal cannot be read.
    """
    store = config.folder
    known = identity.load(store)
    hub = known.hub
    # Costs time that only this command has.
    from edgefleet_agent.trusting import keyholder

    looked = keyholder.answer(renewal.Look(str(known.folder)))
    slots = Slots(store)
    contact = health.last_contact(store)
    # Asked here and now; only the agent has the time to ask beside its work.
    budget = allowance.Allowance(
        store, config.network, allowance.link_class, clock, start=lambda work: work()
    )
    return {
        "device": hub.device,
        "hub": hub.api_url,
        "certificate": msgspec.to_builtins(looked.facts) if looked.facts else None,
        "running": is_running(store),
        "heard_at": contact.at if contact else None,
        "reports_waiting": reports_waiting(store),
        "link": budget.link_class,
        "bytes_left": budget.left(),
        "models": [_lane(slots, journal) for _, journal in sorted(slots.peek().items())],
    }


def roll_back(
    config: Config,
    model: str,
    reason: str,
    *,
    clock: Callable[[], float] = time.time,
    timeout_s: float = ROLLBACK_TIMEOUT_S,
) -> str:
    """Go back to the release before the serving one.

    Args:
        config: of the agent.
        model: whose primary lane goes back.
        reason: for the hub and the log.
        clock: Unix seconds.
        timeout_s: for a running agent to do it.

    Returns:
        A sentence on what serves now.

    Raises:
        NotServingError: if there is no such model.
        TransitionError: if it has no release to go back to.
        StoreError: if the store cannot be used, or the agent does not answer.
    """
    store = config.folder
    device = identity.load(store).hub.device
    slots = Slots(store)
    before = _journal(slots, model)
    # Decided here too, so that what cannot be done is said at once; the agent decides for itself.
    update.gone_back(before, reason)
    if files.is_locked(store):
        release = before.serving.slot.release if before.serving else 0
        _ask(store, byhand.Request(model, release, reason), timeout_s)
    else:
        with files.locked(store):
            _go_back_here(config, device, slots, model, reason, clock())
    serving = _journal(slots, model).serving
    if serving is None or before.serving is None or serving.slot == before.serving.slot:
        raise StoreError(
            f"{model} still serves what it did: the agent could not go back;"
            " see edgefleet-agent logs"
        )
    return f"{model} went back from release {before.serving.slot.release} to {serving.slot.release}"


def is_running(store: Path) -> bool | None:
    """Tell whether an agent holds the store, None if this user may not look."""
    try:
        return files.is_locked(store)
    except StoreError:
        return None


def reports_waiting(store: Path) -> int:
    """Return how many reports wait for the hub.

    Raises:
        StoreError: if the outbox cannot be read.
    """
    path = store / outbox.NAME
    if not path.exists():
        return 0
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM report").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error as error:
        raise StoreError(f"outbox {path} cannot be read: {error}") from error


def reason_of(journal: Journal) -> str:
    """Say why the newest attempt ended as it did, what it waits for, or that it was left again."""
    attempt, serving = journal.attempt, journal.serving
    if attempt is None:
        return ""
    if attempt.step is Step.CONFIRMED and serving and serving.slot != attempt.target.slot:
        return f"went back from release {attempt.target.slot.release} on this device"
    return attempt.reason


def _lane(slots: Slots, journal: Journal) -> dict[str, Any]:
    serving, attempt = journal.serving, journal.attempt
    runtime = None
    if serving:
        try:
            runtime = str(slots.manifest(serving.slot.manifest).needs.runtime)
        except (StoreError, ProtocolError):
            runtime = None  # `doctor` says what is wrong with its files
    return {
        "model": journal.model,
        "lane": journal.lane,
        "version": serving.slot.version if serving else None,
        "release": serving.slot.release if serving else None,
        "variant": serving.slot.variant if serving else None,
        "runtime": runtime,
        "previous_release": journal.kept.slot.release if journal.kept else None,
        "attempt": attempt.number if attempt else None,
        "step": str(attempt.step) if attempt else None,
        "reason": reason_of(journal),
    }


def _journal(slots: Slots, model: str) -> Journal:
    journal = slots.peek().get(model)
    if journal is None:
        raise NotServingError(f"this device has no model {model!r}")
    return journal


def _ask(store: Path, request: byhand.Request, timeout_s: float) -> None:
    """Ask the running agent, and wait until it has dealt with it."""
    try:
        path = byhand.ask(store, request)
    except OSError as error:
        raise StoreError(f"the running agent cannot be asked: {error}") from error
    until = time.monotonic() + timeout_s
    while path.exists():
        if time.monotonic() >= until:
            path.unlink(missing_ok=True)
            raise StoreError(
                f"the running agent did not go back within {timeout_s:g} s;"
                " see edgefleet-agent logs, or stop it and try again"
            )
        time.sleep(_POLL_S)


def _go_back_here(
    config: Config, device: str, slots: Slots, model: str, reason: str, now: float
) -> None:
    journal = _journal(slots, model)
    changed = update.gone_back(journal, reason)
    kept = changed.current
    if kept is None or not slots.is_whole(kept.slot.manifest):
        raise StoreError(f"{model}: the files of the release before are not complete on this disk")
    try:
        slots.save(changed)
        if journal.current and journal.candidate is None:
            # An unfinished attempt reports itself when the agent starts; a confirmed release has
            # reported already, so this is news of its own.
            gone = journal.current.slot
            text = f"{model} went back from release {gone.release} to {kept.slot.release}: {reason}"
            box = outbox.Outbox(config.folder, device, config.budgets.outbox_max_bytes)
            box.put(Refusal("release", "rolled-back-here", text, gone.manifest), now)
            box.close()
    except OSError as error:
        raise StoreError(f"store {config.folder} cannot be written: {error}") from error
