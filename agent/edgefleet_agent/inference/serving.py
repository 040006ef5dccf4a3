"""Answering with whatever release of a model serves, and changing it without a failed call.

Rules:

1. A call takes the reference to what serves once, and works with that to its end; a switch sets
   the reference. The old session goes when its last call does.
2. An unconfirmed candidate keeps the release before it as its fallback. When it raises, gives
   scores that are not finite for rows that are, or is slower than its budget, the fallback answers
   that very call, takes over, and the engine is told. So a bad candidate costs the application
   nothing.
3. A challenger stands beside (see `challenger`). What it does wrong ends it and nothing else.
4. Rows that are themselves not finite, or do not fit the model, are the caller's fault and never
   the candidate's.
"""

import random
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from edgefleet_agent.errors import InferenceError, NotServingError
from edgefleet_agent.inference.challenger import Answer, Challenger, Shadow, Split
from edgefleet_agent.inference.prediction import Cell, Inference, Prediction
from edgefleet_agent.inference.served import GivenTensors, RowsFailedError, Served
from edgefleet_agent.inference.watch import Watch
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.messages import Slot
from edgefleet_protocol.rows import Rows, row_count

__all__ = ["Cell", "Challenger", "Inference", "Model", "Prediction", "Served", "Watch"]

A = TypeVar("A", bound=Answer)


class _Serving(Struct, frozen=True):
    """What a call takes hold of: replaced as a whole, never changed."""

    served: Served
    fallback: Served | None = None
    watch: Watch | None = None
    beside: Shadow | Split | None = None


class Model:
    """A model by name, whatever release of it serves. Safe to call from several threads."""

    def __init__(
        self, name: str, on_fault: Callable[[Slot, str], None], rng: random.Random | None = None
    ) -> None:
        """Make an empty place for a model.

        Args:
            name: of the model.
            on_fault: told when a candidate or a challenger is taken out because it failed.
            rng: that deals calls to a split.
        """
        self.name = name
        self._on_fault = on_fault
        self._rng = rng or random.Random()  # noqa: S311  # deals calls, no secret
        self._state: _Serving | None = None
        # Kept beside the state too: a challenger may be there before there is a primary.
        self._beside: Shadow | Split | None = None
        self._changed = threading.Condition()

    # -- for applications ------------------------------------------------------------------------

    @property
    def slot(self) -> Slot | None:
        """The release that serves now, None for none."""
        state = self._state
        return state.served.slot if state else None

    @property
    def challenger_slot(self) -> Slot | None:
        """The release beside it, None for none."""
        beside = self._beside
        return beside.served.slot if beside else None

    @property
    def shadow_dropped(self) -> int:
        """Calls and labels that the shadow beside it had no time for."""
        beside = self._beside
        return beside.dropped if isinstance(beside, Shadow) else 0

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
        # The type first: asking whether an array is a mapping costs more than all the rest here.
        if type(row) is not np.ndarray and isinstance(row, Mapping):
            columns = {name: _column(value) for name, value in row.items()}
            return self._ask_rows(columns)[0]
        array = np.asarray(row, np.float64)
        state = self._state
        if state is None:
            raise self._nothing()
        served = state.served
        if array.shape != served.shape:
            raise _unfitting(array, served)
        if state.beside is not None:
            kept = array.copy()
            return self._ask(lambda served, watch: _answer_row(served, kept, watch))
        try:
            return served.answer_row(array, state.watch)
        except RowsFailedError as failure:
            self._fall_back(state, failure)
        return self.predict(array)

    def predict_batch(self, rows: Rows) -> list[Prediction]:
        """Answer several rows at once.

        Args:
            rows: `(n, n_columns)`, or a mapping from column name to `n` values.

        Raises:
            As `predict`; one bad row refuses the batch.
        """
        given = _owned(rows) if self._beside is not None else rows
        if not isinstance(given, Mapping):
            given = np.asarray(given)
        if self.signature.takes_batches:
            return self._ask_rows(given)
        singles = (_row_of(given, index) for index in range(row_count(given)))
        return [prediction for one in singles for prediction in self._ask_rows(one)]

    def infer(self, tensors: GivenTensors, outputs: Collection[str] | None = None) -> Inference:
        """Answer input tensors; the way for pictures, spectrograms, states and the like.

        Args:
            tensors: by input name, with the rows in front where the model takes batches.
            outputs: names of those that are wanted, None for all.

        Raises:
            As `predict`.
        """
        given = {name: np.asarray(value) for name, value in tensors.items()}
        if self._beside is not None:
            given = {name: value.copy() for name, value in given.items()}
        return self._ask(lambda served, watch: served.answer_tensors(given, outputs, watch))

    def feedback(self, prediction: int, label: object) -> bool:
        """Give the true label of an earlier prediction.

        Args:
            prediction: its id.
            label: the truth; compared as text.

        Returns:
            Whether the row was still known.
        """
        state, text = self._state, str(label)
        if state is None:
            return False
        answered = [state.served, state.fallback] if state.fallback else [state.served]
        known = any(served.recorder.label(prediction, text) for served in answered)
        beside = state.beside
        if isinstance(beside, Split):
            return known or beside.label(prediction, text)
        if known and beside is not None:
            beside.label(prediction, text)
        return known

    # -- for the engine --------------------------------------------------------------------------

    def serve(
        self, served: Served | None, fallback: Served | None = None, watch: Watch | None = None
    ) -> None:
        """Switch to another release, or to none."""
        with self._changed:
            old = self._loaded()
            self._state = _Serving(served, fallback, watch, self._beside) if served else None
            self._changed.notify_all()
        self._finish_gone(old)

    def challenge(self, challenger: Challenger | None) -> None:
        """Put a release beside the one that serves, or none."""
        with self._changed:
            old, before = self._loaded(), self._beside
            self._place_beside(self._made(challenger) if challenger else None)
        if before:
            before.stop()
        self._finish_gone(old)

    def loaded(self, slot: Slot) -> Served | None:
        """Return that release if it is loaded: serving, as fallback or beside."""
        return next((served for served in self._loaded() if served.slot == slot), None)

    def finish(self) -> None:
        """Close all open windows, and let nothing run beside."""
        if self._beside:
            self._beside.stop()
        for served in self._loaded():
            served.recorder.finish()

    # -- inside ----------------------------------------------------------------------------------

    def _ask_rows(self, rows: Rows) -> list[Prediction]:
        return self._ask(lambda served, watch: served.answer_rows(rows, watch))

    def _ask(self, ask: Callable[[Served, Watch | None], A]) -> A:
        """Let the one whose turn it is answer; a challenger's failure is the primary's call."""
        state = self._serving()
        beside = state.beside
        if beside is None:
            return self._ask_primary(ask)
        if not beside.takes_call():
            answer = self._ask_primary(ask)
            beside.offer(ask, answer)
            return answer
        try:
            return ask(beside.served, beside.watch)
        except RowsFailedError as failure:
            if failure.at_fault:
                self._end_challenger(beside.served, str(failure))
            return self._ask_primary(ask)
        except MalformedError as error:
            answer = self._ask_primary(ask)  # raises if the rows are wrong, not the challenger
            text = f"does not take the rows of the primary: {error}"
            self._end_challenger(beside.served, text)
            return answer

    def _ask_primary(self, ask: Callable[[Served, Watch | None], A]) -> A:
        while True:
            state = self._serving()
            try:
                return ask(state.served, state.watch)
            except RowsFailedError as failure:
                self._fall_back(state, failure)

    def _fall_back(self, state: _Serving, failure: RowsFailedError) -> None:
        """Take a candidate out; return if something serves instead of it, else raise."""
        served = state.served
        error = InferenceError(f"{self.name} release {served.slot.release}: {failure}")
        if state.watch is None or not failure.at_fault:
            raise error from failure
        with self._changed:
            current = self._state
            mine = current is not None and current.served is served and current.watch is state.watch
            if mine:
                fallback, beside = state.fallback, self._beside
                self._state = _Serving(fallback, None, None, beside) if fallback else None
        if mine:
            served.recorder.finish()
            self._on_fault(served.slot, str(failure))
        if self._state is None:
            raise error from failure

    def _made(self, challenger: Challenger) -> Shadow | Split:
        if challenger.role == "split":
            return Split(challenger, self._rng)
        served = challenger.served
        return Shadow(challenger, lambda why: self._end_challenger(served, why))

    def _end_challenger(self, served: Served, reason: str) -> None:
        with self._changed:
            beside = self._beside
            if beside is None or beside.served is not served:
                return  # another call has ended it, or the engine has
            self._place_beside(None)
        beside.stop()
        served.recorder.finish()
        self._on_fault(served.slot, reason)

    def _place_beside(self, beside: Shadow | Split | None) -> None:
        self._beside = beside
        state = self._state
        if state:
            self._state = _Serving(state.served, state.fallback, state.watch, beside)

    def _loaded(self) -> list[Served]:
        state, beside = self._state, self._beside
        found = [state.served, state.fallback] if state else []
        found.append(beside.served if beside else None)
        return [served for served in found if served]

    def _finish_gone(self, before: list[Served]) -> None:
        kept = self._loaded()
        for served in before:
            if not any(served is other for other in kept):
                served.recorder.finish()

    def _serving(self) -> _Serving:
        state = self._state
        if state is None:
            raise self._nothing()
        return state

    def _nothing(self) -> NotServingError:
        return NotServingError(f"this device serves no model {self.name!r}")


def _answer_row(served: Served, row: NDArray[np.float64], watch: Watch | None) -> Prediction:
    if row.shape != served.shape:
        raise _unfitting(row, served)
    return served.answer_row(row, watch)


def _unfitting(row: NDArray[np.float64], served: Served) -> MalformedError:
    if served.shape is None:
        names = [tensor.name for tensor in served.signature.inputs]
        return MalformedError(f"the model takes the tensors {names[:8]}, not rows: use infer")
    return MalformedError(f"row of shape {row.shape}: expected {served.shape}")


def _column(value: Cell) -> NDArray[np.object_]:
    column = np.empty(1, object)
    column[0] = value
    return column


def _owned(rows: Rows) -> Rows:
    """Return a copy, for whoever reads the rows after the caller has its answer."""
    if isinstance(rows, Mapping):
        return {name: np.array(values, object) for name, values in rows.items()}
    return np.array(rows)


def _row_of(rows: Rows, index: int) -> Rows:
    if isinstance(rows, Mapping):
        return {name: np.asarray(values)[index : index + 1] for name, values in rows.items()}
    return rows[index : index + 1]
