"""One loaded release: rows and tensors in, answers out, everything counted.

Rules:

1. What does not fit the model is the caller's fault (`MalformedError`) and found before it runs.
2. What fails in the model is a `RowsFailedError`, counted as errors of the window. It is the
   release's fault unless the rows themselves were not finite.
3. The way of one row of one numeric input, the common case, is put together when the release is
   loaded: afterwards it looks up nothing and builds nothing but the answer.
4. The session is closed and the last window handed over when nobody holds the release any more:
   every call holds it to its end, so none is cut off.
"""

import math
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.inference.prediction import Inference, Prediction
from edgefleet_agent.inference.sketching import Recorder
from edgefleet_agent.inference.watch import Watch
from edgefleet_agent.runtimes import CallsRows, RowCall, Scores, Session, as_one_row, as_scores
from edgefleet_protocol import golden
from edgefleet_protocol import rows as rows_
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Slot
from edgefleet_protocol.rows import Rows, Tensors
from edgefleet_protocol.sketch import ReferenceProfile

GivenTensors = Mapping[str, NDArray[np.generic]]
AnswerRow = Callable[[NDArray[np.float64], Watch | None], Prediction]


class RowsFailedError(InferenceError):
    """A release raised, gave scores that are not finite, or is too slow.

    Attributes:
        at_fault: False where the rows were not finite themselves.
    """

    def __init__(self, text: str, *, at_fault: bool = True) -> None:
        super().__init__(text)
        self.at_fault = at_fault


class Served:
    """A loaded release with its recorder. Safe to call from several threads.

    Attributes:
        shape: of a row, `(n_columns,)`; None for a model that takes more than rows.
        answer_row: answers a row of that shape, under watch if it is unconfirmed.
    """

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
        self.recorder = recorder
        self._session = session
        self._labels = signature.classes if signature.task == "classification" else []
        self.shape = (len(signature.columns),) if signature.is_tabular else None
        self.answer_row: AnswerRow = _row_answerer(
            slot, self._labels, recorder, _row_call(session, signature)
        )
        weakref.finalize(self, _retire, recorder, session).atexit = False

    def answer_rows(self, given: Rows, watch: Watch | None) -> list[Prediction]:
        """Answer rows `(n, n_columns)`, or a mapping from column name to `n` values.

        Raises:
            MalformedError: if they do not fit the model.
            RowsFailedError: if the model fails.
        """
        tensors = rows_.bind(self.signature, given)
        counted = rows_.numbers(self.profile.features, given)
        if len(counted) == 0:
            return []
        score_output = self.signature.score_output
        _, scores, elapsed_us = self._run(tensors, [score_output], counted, watch)
        tops, ids = self._count(counted, scores, elapsed_us)
        slot, labels = self.slot, self._labels
        return [
            Prediction(
                number,
                slot.model,
                slot.version,
                slot.release,
                labels[top] if labels else None,
                values[top] if labels else values[0],
                values,
            )
            for number, top, values in zip(ids, tops, scores.tolist(), strict=True)
        ]

    def answer_tensors(
        self, given: GivenTensors, outputs: Collection[str] | None, watch: Watch | None
    ) -> Inference:
        """Answer input tensors by name, with the outputs that are wanted (None for all).

        Raises:
            MalformedError: if inputs or outputs do not fit the model.
            RowsFailedError: if the model fails.
        """
        tensors = _fitting(self.signature, given)
        known = [tensor.name for tensor in self.signature.outputs]
        wanted = known if outputs is None else list(outputs)
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise MalformedError(f"the model has no outputs {unknown[:8]}; it has {known}")
        counted = rows_.count(self.signature, self.profile.features, tensors)
        asked = list(dict.fromkeys([*wanted, self.signature.score_output]))
        found, scores, elapsed_us = self._run(tensors, asked, counted, watch)
        tops, ids = self._count(counted, scores, elapsed_us)
        slot, labels = self.slot, self._labels
        return Inference(
            ids,
            slot.model,
            slot.version,
            slot.release,
            [labels[top] for top in tops] if labels else None,
            {name: found[name] for name in wanted},
        )

    def check(self, vectors: GoldenVectors) -> None:
        """Run golden vectors in this process.

        Raises:
            ModelError: if the scores are not the expected ones.
        """
        self._session.reset()
        scores = self._session.run(golden.inputs_of(self.signature, vectors))
        self._session.reset()
        faults = golden.faults(vectors, scores)
        if faults:
            raise ModelError(f"golden vectors in this process: {'; '.join(faults)}")

    def _run(
        self,
        tensors: Tensors,
        outputs: Sequence[str],
        counted: NDArray[np.float64],
        watch: Watch | None,
    ) -> tuple[dict[str, NDArray[np.generic]], Scores, float]:
        """Return the outputs, the scores `(n, k)`, and the time of one row in µs."""
        n = len(counted)
        started = time.perf_counter()
        try:
            found = self._session.run_all(tensors, outputs)
            output = found[self.signature.score_output]
            scores = as_scores(output, n) if self.signature.takes_batches else as_one_row(output)
        except InferenceError as error:
            self.recorder.fail(n)
            raise RowsFailedError(str(error)) from error
        elapsed_us = (time.perf_counter() - started) * 1e6 / n
        bad = ~np.isfinite(scores).all(axis=1)
        if bad.any():
            self.recorder.fail(int(bad.sum()))
            raise RowsFailedError(
                f"scores of {int(bad.sum())} of {n} rows are not finite",
                at_fault=bool(np.isfinite(counted[bad]).all()),
            )
        fault = watch.count(self.slot, n, elapsed_us) if watch else None
        if fault:
            self.recorder.fail(n)
            raise RowsFailedError(fault)
        return found, scores, elapsed_us

    def _count(
        self, counted: NDArray[np.float64], scores: Scores, elapsed_us: float
    ) -> tuple[list[int], list[int]]:
        """Record the rows; return the index of each one's class, and their ids."""
        add = self.recorder.add
        tops: list[int] = scores.argmax(axis=1).tolist() if self._labels else [-1] * len(scores)
        best = scores[np.arange(len(scores)), np.maximum(tops, 0)].tolist()
        ids = [
            add(row, top, score, elapsed_us)
            for row, top, score in zip(counted, tops, best, strict=True)
        ]
        return tops, ids


def _retire(recorder: Recorder, session: Session) -> None:
    recorder.finish()
    session.close()


def _row_call(session: Session, signature: Signature) -> RowCall:
    """Return the quickest way from a row `(n_columns,)` to its scores."""
    inputs = signature.inputs
    only = inputs[0] if len(inputs) == 1 and inputs[0].dtype != "string" else None
    quick = session.row_call() if only and isinstance(session, CallsRows) else None
    if quick:
        return quick

    def call(row: NDArray[np.float64]) -> list[float]:
        values: list[float] = session.run(rows_.bind(signature, row[None, :]))[0].tolist()
        return values

    return call


def _row_answerer(slot: Slot, labels: list[str], recorder: Recorder, call: RowCall) -> AnswerRow:
    """Return `Served.answer_row`; rule 3."""
    model, version, release = slot.model, slot.version, slot.release
    add, now, isfinite = recorder.add, time.perf_counter, math.isfinite

    def answer(row: NDArray[np.float64], watch: Watch | None) -> Prediction:
        started = now()
        try:
            values = call(row)
        except InferenceError as error:
            recorder.fail()
            raise RowsFailedError(str(error)) from error
        elapsed_us = (now() - started) * 1e6
        # A sum is finite only if every part is (an overflow of the sum is looked at again).
        if not isfinite(sum(values)) and not all(map(isfinite, values)):
            recorder.fail()
            at_fault = bool(np.isfinite(row).all())
            raise RowsFailedError(f"scores are not finite: {values[:8]}", at_fault=at_fault)
        if watch:
            fault = watch.count(slot, 1, elapsed_us)
            if fault:
                recorder.fail()
                raise RowsFailedError(fault)
        if labels:
            score = max(values)
            top = values.index(score)
            number = add(row, top, score, elapsed_us)
            return Prediction(number, model, version, release, labels[top], score, values)
        score = values[0]
        number = add(row, -1, score, elapsed_us)
        return Prediction(number, model, version, release, None, score, values)

    return answer


def _fitting(signature: Signature, given: GivenTensors) -> Tensors:
    """Return tensors in the types that the model takes.

    Raises:
        MalformedError: if names, sizes or types do not fit.
    """
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    if set(given) != set(wanted):
        raise MalformedError(f"inputs {sorted(given)[:8]}: the model takes {sorted(wanted)[:8]}")
    return {name: _fit(tensor, np.asarray(given[name])) for name, tensor in wanted.items()}


def _fit(tensor: Tensor, value: NDArray[np.generic]) -> NDArray[np.generic]:
    sizes = zip(value.shape, tensor.shape, strict=False)
    if value.ndim != len(tensor.shape) or any(w is not None and h != w for h, w in sizes):
        shape = [-1 if size is None else size for size in tensor.shape]
        raise MalformedError(f"input {tensor.name!r} has the shape {value.shape}; expected {shape}")
    if tensor.dtype == "string":
        if value.dtype.kind not in "OUS":
            raise MalformedError(f"input {tensor.name!r} holds {value.dtype}; expected text")
        return value.astype(object, copy=False)
    dtype = np.dtype(tensor.dtype)
    if value.dtype == dtype:
        return value
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise MalformedError(f"input {tensor.name!r} holds {value.dtype}; expected {dtype}")
    return value.astype(dtype)
