"""Looking at a store from a process that does not own it: what it holds, and what it answers."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet_agent import identity, outbox, tables
from edgefleet_agent.errors import NotServingError, StoreError
from edgefleet_agent.slots import Slots
from edgefleet_protocol import rows


def answer(store: Path, model: str, path: Path) -> list[dict[str, Any]]:
    """Answer the rows of a file with the release that serves in the store.

    Returns:
        One mapping a row: `label` (None without classes), `score`, `scores`, `release`.

    Raises:
        NotServingError: if the store has no such model.
        SourceError: if the rows cannot be read.
        ModelError, StoreError: if the model cannot be loaded.
    """
    from edgefleet_agent import runtimes

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


def status(store: Path) -> dict[str, Any]:
    """Return what a person wants to know of a store.

    Raises:
        EnrolmentError: if the device is not enrolled.
        StoreError: if a journal cannot be read.
    """
    hub = identity.load(store).hub
    models = []
    for name, journal in Slots(store).peek().items():
        serving, attempt = journal.serving, journal.attempt
        models.append(
            {
                "model": name,
                "version": serving.slot.version if serving else None,
                "release": serving.slot.release if serving else None,
                "variant": serving.slot.variant if serving else None,
                "previous_release": journal.kept.slot.release if journal.kept else None,
                "attempt": attempt.number if attempt else None,
                "step": str(attempt.step) if attempt else None,
                "reason": attempt.reason if attempt else "",
            }
        )
    return {
        "device": hub.device,
        "hub": hub.api_url,
        "reports_waiting": _reports_waiting(store),
        "models": models,
    }


def _reports_waiting(store: Path) -> int:
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
