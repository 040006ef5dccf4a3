"""Answering rows with the model of a slot, and changing that slot without a failed call.

Rules:

1. A call takes the reference to what serves once, and works with that to its end; a switch sets
   the reference. The old session goes when its last call does.
2. An unconfirmed candidate keeps the release before it as its fallback. When it raises, or gives
   scores that are not finite for rows that are, the fallback answers that very call, takes over,
   and the engine is told. So a bad candidate costs the application nothing.
3. Rows that are themselves not finite, or do not have the model's columns, are the caller's fault
   and never the candidate's.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from edgefleet_agent.errors import InferenceError, ModelError, NotServingError
from edgefleet_agent.runtimes import Scores, Session
from edgefleet_agent.sketching import Recorder
from edgefleet_protocol import golden
from edgefleet_protocol import rows as rows_
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.messages import Slot
from edgefleet_protocol.rows import Rows, Tensors
from edgefleet_protocol.sketch import ReferenceProfile

Cell = float | str | None


class Prediction(Struct, frozen=True):
    """The answer for one row.

    Attributes:
        id: for `Model.feedback`.
        label: predicted class, None if the model has no classes.
        score: probability of that class, or the value.
        scores: everything the model gave, in the order of its classes.
    """

    id: int
    model: str
    version: str
    release: int
    label: str | None
    score: float
    scores: list[float]


class Served:
    """One loaded release with its recorder."""

    def __init__(
        self,
        slot: Slot,
        signature: Signature,
        profile: ReferenceProfile,
        session: Session,
        recorder: Recorder,
    ) -> None:
        self.slot = slot
        self.signature = signature
        self.profile = profile
        self.session = session
        self.recorder = recorder
        self.labels = signature.classes if signature.task == "classification" else []
        self.width = len(signature.columns)
        inputs = signature.inputs
        # The common case, one numeric input, is bound without a loop.
        self._only = inputs[0] if len(inputs) == 1 and inputs[0].dtype != "string" else None
        if self._only:
            self._shape = [1, *[size or 1 for size in self._only.shape[1:]]]
            self._dtype = np.dtype(self._only.dtype)

    def bind_row(self, row: NDArray[np.float64]) -> Tensors:
        """Return the input tensors of one row, `(n_columns,)`."""
        if self._only is None:
            return rows_.bind(self.signature, row[None, :])
        if row.shape[0] != self.width:
            raise MalformedError(f"row of {row.shape[0]} values: expected {self.width}")
        return {self._only.name: row.astype(self._dtype).reshape(self._shape)}

    def check(self, vectors: GoldenVectors) -> None:
        """Run golden vectors in this process.

        Raises:
            ModelError: if the scores are not the expected ones.
        """
        scores = self.session.run(rows_.bind(self.signature, vectors.inputs()))
        faults = golden.faults(vectors, scores)
        if faults:
            raise ModelError(f"golden vectors in this process: {'; '.join(faults)}")


class Proof:
    """Counts good rows of a candidate, and says once that there are enough."""

    def __init__(self, rows: int, on_proven: Callable[[], None]) -> None:
        self._left = rows
        self._on_proven = on_proven
        self._lock = threading.Lock()

    def count(self, rows: int) -> None:
        """Count rows that were served without a fault."""
        with self._lock:
            before, self._left = self._left, self._left - rows
        if before > 0 >= self._left:
            self._on_proven()


class _Serving(Struct, frozen=True):
    """What a call takes hold of: replaced as a whole, never changed."""

    served: Served
    fallback: Served | None = None
    proof: Proof | None = None


class Model:
    """A model by name, whatever release of it serves. Safe to call from several threads."""

    def __init__(self, name: str, on_fault: Callable[[Slot, str], None]) -> None:
        """Make an empty place for a model.

        Args:
            name: of the model.
            on_fault: told when a candidate is taken out because it failed.
        """
        self.name = name
        self._on_fault = on_fault
        self._state: _Serving | None = None
        self._changed = threading.Condition()

    @property
    def slot(self) -> Slot | None:
        """The release that serves now, None for none."""
        state = self._state
        return state.served.slot if state else None

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the release that serves now.

        Raises:
            NotServingError: if there is none.
        """
        return self._serving().served.signature

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a release serves; return whether one does."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state is not None, timeout_s)

    def predict(self, row: ArrayLike | Mapping[str, Cell]) -> Prediction:
        """Answer one row.

        Args:
            row: `(n_columns,)` in the order of the model's columns, or a mapping from column
                name to value, which models with text columns need.

        Raises:
            NotServingError: if no release serves.
            InferenceError: if the model fails and there is nothing to fall back to.
            edgefleet_protocol.errors.MalformedError: if the row does not fit the model.
        """
        if isinstance(row, Mapping):
            return self._predict_rows({name: _column(value) for name, value in row.items()})[0]
        array = np.asarray(row, np.float64)
        if array.ndim != 1:
            raise MalformedError(f"row of shape {array.shape}: expected (n_columns,)")
        return self._predict_row(array)

    def predict_batch(self, rows: Rows) -> list[Prediction]:
        """Answer several rows at once.

        Args:
            rows: `(n, n_columns)`, or a mapping from column name to `n` values.

        Raises:
            As `predict`; one bad row refuses the batch.
        """
        return self._predict_rows(rows if isinstance(rows, Mapping) else np.asarray(rows))

    def feedback(self, prediction: int, label: object) -> bool:
        """Give the true label of an earlier prediction.

        Args:
            prediction: its id.
            label: the truth; compared as text.

        Returns:
            Whether the row was still known.
        """
        state = self._state
        if state is None:
            return False
        text = str(label)
        if state.served.recorder.label(prediction, text):
            return True
        return state.fallback is not None and state.fallback.recorder.label(prediction, text)

    def serve(
        self, served: Served | None, fallback: Served | None = None, proof: Proof | None = None
    ) -> None:
        """Switch to another release, or to none. For the engine."""
        with self._changed:
            old = self._state
            self._state = _Serving(served, fallback, proof) if served else None
            self._changed.notify_all()
        kept = (served, fallback)
        for gone in (old.served, old.fallback) if old else ():
            if gone is not None and gone not in kept:
                gone.recorder.finish()

    def loaded(self, slot: Slot) -> Served | None:
        """Return that release if it is loaded, serving or as fallback. For the engine."""
        state = self._state
        for served in (state.served, state.fallback) if state else ():
            if served is not None and served.slot == slot:
                return served
        return None

    def finish(self) -> None:
        """Close all open windows. For the engine."""
        state = self._state
        for served in (state.served, state.fallback) if state else ():
            if served is not None:
                served.recorder.finish()

    def _serving(self) -> _Serving:
        state = self._state
        if state is None:
            raise NotServingError(f"this device serves no model {self.name!r}")
        return state

    def _predict_row(self, row: NDArray[np.float64]) -> Prediction:
        state = self._serving()
        served = state.served
        tensors = served.bind_row(row)
        started = time.perf_counter()
        try:
            values: list[float] = served.session.run(tensors)[0].tolist()
        except InferenceError as error:
            return self._row_failed(state, row, str(error), candidate_at_fault=True)
        elapsed_us = (time.perf_counter() - started) * 1e6
        # A sum is finite only if every part is (an overflow of the sum is looked at again).
        if not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
            text = f"scores are not finite: {values[:8]}"
            return self._row_failed(
                state, row, text, candidate_at_fault=bool(np.isfinite(row).all())
            )
        slot = served.slot
        if served.labels:
            score = max(values)
            top = values.index(score)
            label: str | None = served.labels[top]
        else:
            score, top, label = values[0], -1, None
        number = served.recorder.add(row, top, score, elapsed_us)
        if state.proof:
            state.proof.count(1)
        return Prediction(number, slot.model, slot.version, slot.release, label, score, values)

    def _row_failed(
        self, state: _Serving, row: NDArray[np.float64], text: str, *, candidate_at_fault: bool
    ) -> Prediction:
        self._failed(state, 1, text, candidate_at_fault=candidate_at_fault)
        return self._predict_row(row)

    def _predict_rows(self, given: Rows) -> list[Prediction]:
        state = self._serving()
        served = state.served
        tensors = rows_.bind(served.signature, given)
        counted = rows_.numbers(served.profile.features, given)
        n = len(counted)
        if n == 0:
            return []
        started = time.perf_counter()
        try:
            scores = served.session.run(tensors)
        except InferenceError as error:
            self._failed(state, n, str(error), candidate_at_fault=True)
            return self._predict_rows(given)
        elapsed_us = (time.perf_counter() - started) * 1e6 / n
        bad = ~np.isfinite(scores).all(axis=1)
        if bad.any():
            text = f"scores of {int(bad.sum())} of {n} rows are not finite"
            at_fault = bool(np.isfinite(counted[bad]).all())
            self._failed(state, int(bad.sum()), text, candidate_at_fault=at_fault)
            return self._predict_rows(given)
        predictions = _predictions(served, counted, scores, elapsed_us)
        if state.proof:
            state.proof.count(n)
        return predictions

    def _failed(self, state: _Serving, rows: int, text: str, *, candidate_at_fault: bool) -> None:
        """Count a failure; return if a fallback now serves instead, else raise."""
        served = state.served
        served.recorder.fail(rows)
        if not candidate_at_fault or state.proof is None:
            raise InferenceError(f"{self.name} release {served.slot.release}: {text}")
        with self._changed:
            if self._state is state:
                self._state = _Serving(state.fallback) if state.fallback else None
        served.recorder.finish()
        self._on_fault(served.slot, text)
        if self._state is None:
            raise InferenceError(f"{self.name} release {served.slot.release}: {text}")


def _column(value: Cell) -> NDArray[np.object_]:
    column = np.empty(1, object)
    column[0] = value
    return column


def _predictions(
    served: Served, counted: NDArray[np.float64], scores: Scores, elapsed_us: float
) -> list[Prediction]:
    slot, add = served.slot, served.recorder.add
    found = []
    tops: Sequence[Any] = scores.argmax(axis=1) if served.labels else [-1] * len(scores)
    for row, values, top in zip(counted, scores.tolist(), map(int, tops), strict=True):
        score = values[top] if served.labels else values[0]
        number = add(row, top, score, elapsed_us)
        label = served.labels[top] if served.labels else None
        found.append(
            Prediction(number, slot.model, slot.version, slot.release, label, score, values)
        )
    return found
