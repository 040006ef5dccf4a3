"""Choose one variant for a board, and say of every other why it lost. Pure.

A variant qualifies for a board if

1. it passed verification, and the static check of every runtime version of the board,
2. what was run on the board itself, if anything, came out right,
3. its file, its file as sent and its memory are within their budgets,
4. its drop is within the budget by its interval (`verification.evidence`), unless it is float32,
   which verification holds to parity with the original,
5. it is not slower than any float32 variant that runs on the board: the interval of the ratio of
   their times does not lie above 1, nor reach more than `MARGIN` above it,
6. its latency is within the budget, where that is known.

Times hold for a board if they were measured on it, or here on a machine of its architecture. For
any other board a variant must not be slower here, and must not compute in what the board's CPU is
known to be slow at (`slow_kernels`); its latency budget is left to the device, which measures it in
its own trial.

Of those that qualify, the smallest is chosen; files up to `TIE` larger count as equal, and the
fastest of them is taken (with `prefer: latency` the other way round). Where nothing qualifies,
rule 5 is lifted for float32 variants: the slower of two is better than none.
"""

import platform
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from edgefleet_converters.searching import slow_kernels
from edgefleet_converters.searching.budgets import Budgets
from edgefleet_converters.searching.candidates import Candidate
from edgefleet_converters.searching.measurements import OnBoard
from edgefleet_converters.verification import evidence
from edgefleet_converters.verification.evidence import Interval

# Share by which the interval of a ratio of times may reach above 1: pairs of one and the same model
# were seen to reach 1.03.
MARGIN = 0.05
# Files or times that differ by less are equal to whoever chooses.
TIE = 0.05


class BoardView(Struct, frozen=True):
    """What the choice knows of a board.

    Attributes:
        architecture, features: of its CPU.
        here: whether this machine has its architecture, so that times taken here hold.
        confidence: of intervals of times.
        misfits: variant → why the static check refuses it; none if it fits.
        measured: digest of a model file → what it did on the board.
    """

    name: str
    title: str
    architecture: str
    features: list[str]
    here: bool
    confidence: float = evidence.CONFIDENCE
    misfits: dict[str, list[str]] = field(default_factory=dict)
    measured: dict[str, OnBoard] = field(default_factory=dict)


class Choice(Struct, frozen=True):
    """What a board gets.

    Attributes:
        chosen: name of the variant; None if none qualifies.
        reason: in a sentence, why this one; or what stands in the way of all.
        losers: every other variant → why it lost.
        notes: what a reader must know, such as times that were not measured on the board.
    """

    board: str
    title: str
    chosen: str | None
    reason: str
    losers: dict[str, list[str]]
    notes: list[str]


class _Judged(Struct, frozen=True):
    """A candidate on one board: why it does not qualify, split by the rule that can be lifted."""

    candidate: Candidate
    reasons: list[str]
    slower: list[str]
    latency_us: float
    memory_bytes: int

    @property
    def all_reasons(self) -> list[str]:
        return self.reasons + self.slower


def choose(board: BoardView, candidates: Sequence[Candidate], budgets: Budgets) -> Choice:
    """Return the variant that a board gets, by the rules of this module.

    Args:
        board: with the verdicts of the static check on all candidates.
        candidates: everything that was made; names are unique.
        budgets: of this board.
    """
    baselines = [c for c in candidates if c.lossless and not _cannot_run(c, board)]
    judged = [_judge(c, board, baselines, budgets) for c in candidates]
    fit = [one for one in judged if not one.all_reasons]
    lifted = not fit
    if lifted:
        fit = [one for one in judged if one.candidate.lossless and not one.reasons]
    if not fit:
        return Choice(
            board.name,
            board.title,
            None,
            _what_is_missing(judged, board),
            {one.candidate.name: one.all_reasons for one in judged},
            _notes(board, None, budgets),
        )
    best = _best(fit, budgets)
    return Choice(
        board.name,
        board.title,
        best.candidate.name,
        _why(best, fit, lifted, baselines, budgets),
        {
            one.candidate.name: one.all_reasons or [_why_not_preferred(one, best)]
            for one in judged
            if one is not best
        },
        _notes(board, best.candidate, budgets),
    )


def _judge(
    candidate: Candidate, board: BoardView, baselines: Sequence[Candidate], budgets: Budgets
) -> _Judged:
    there = board.measured.get(candidate.digest)
    latency_us = candidate.latency_us.p50
    memory_bytes = candidate.memory_peak_bytes
    if there is not None:
        latency_us = latency_us if there.model.latency_us is None else there.model.latency_us.p50
        memory_bytes = there.model.memory_peak_bytes or memory_bytes
    reasons = _cannot_run(candidate, board)
    if not candidate.faults:
        reasons += _over_size(candidate, memory_bytes, budgets)
        reasons += _over_drop(candidate, budgets)
        if _holds(candidate, board) and 0 < budgets.max_latency_us < latency_us:
            reasons.append(
                f"takes {latency_us:,.1f} µs a row; the budget is {budgets.max_latency_us:,} µs"
            )
    slower = [] if reasons else _slower(candidate, board, baselines)
    return _Judged(candidate, reasons, slower, latency_us, memory_bytes)


def _cannot_run(candidate: Candidate, board: BoardView) -> list[str]:
    """Apply the rules 1 and 2."""
    if candidate.faults:
        return [f"refused by verification: {fault}" for fault in candidate.faults]
    reasons = [f"does not fit the board: {reason}" for reason in board.misfits[candidate.name]]
    there = board.measured.get(candidate.digest)
    if there is not None and there.model.outcome != "right":
        reasons.append(f"run on the board with {there.source}, it came out {there.model.outcome}")
    return reasons


def _over_size(candidate: Candidate, memory_bytes: int, budgets: Budgets) -> list[str]:
    """Apply rule 3."""
    limits = (
        ("the file", candidate.size_bytes, budgets.max_bytes),
        ("the file as sent", candidate.transfer_bytes, budgets.max_transfer_bytes),
        ("memory at its peak", memory_bytes, budgets.max_memory_bytes),
    )
    return [
        f"{what} is {size:,} bytes, {size - most:,} over the budget of {most:,}"
        for what, size, most in limits
        if 0 < most < size
    ]


def _over_drop(candidate: Candidate, budgets: Budgets) -> list[str]:
    """Apply rule 4."""
    if candidate.lossless:
        return []
    found = candidate.evidence
    if found is None:
        return ["it could not be compared with the original"]
    drop, most = found.drop, budgets.max_drop
    verdict = evidence.budget_verdict(drop, most)
    lenient = budgets.evidence == "not-refuted" and drop.point <= most
    if verdict == "within" or (verdict == "undecided" and lenient):
        return []
    seen = f"{found.metric} drops by {drop.point:.4f} ({_ends(drop)}); the budget is {most:g}"
    if verdict == "over":
        return [f"{seen}, and even the lower end is over it"]
    needed = evidence.units_to_decide(found, most)
    more = "" if needed is None else f"; about {needed:,} would decide"
    return [f"{seen}, which {found.units:,} rows do not prove to be kept{more}"]


def _slower(candidate: Candidate, board: BoardView, baselines: Sequence[Candidate]) -> list[str]:
    """Apply rule 5."""
    reasons = []
    there = board.measured.get(candidate.digest)
    for base in baselines:
        if base.name == candidate.name:
            continue
        where = "on the board"
        ratio = None if there is None else there.against(base.digest, board.confidence)
        if ratio is None:
            where = "here"
            ratio = candidate.against.get(base.name)
            if not board.here and not candidate.lossless:
                reasons += slow_kernels.known_slow(
                    candidate.kernels, candidate.runtime, board.architecture, board.features
                )
        if ratio is None:
            reasons.append(f"was not timed beside {base.name}")
        elif fault := _ratio_fault(ratio):
            reasons.append(f"{fault} {base.name} takes {where} ({_ends(ratio)})")
    return list(dict.fromkeys(reasons))


def _ratio_fault(ratio: Interval) -> str:
    if ratio.low > 1:
        return f"slower than float32: {ratio.point:.2f} times what"
    if ratio.high > 1 + MARGIN:
        return f"may be slower than float32: {ratio.point:.2f} times what"
    return ""


def _holds(candidate: Candidate, board: BoardView) -> bool:
    """Return whether a candidate's latency is known for the board."""
    there = board.measured.get(candidate.digest)
    return board.here or (there is not None and there.model.latency_us is not None)


def _preference(budgets: Budgets) -> tuple[Callable[[_Judged], float], Callable[[_Judged], float]]:
    """Return what is compared first, and what decides between those that are nearly equal in it."""

    def size(one: _Judged) -> float:
        return one.candidate.size_bytes

    def time(one: _Judged) -> float:
        return one.latency_us

    return (size, time) if budgets.prefer == "size" else (time, size)


def _best(fit: Sequence[_Judged], budgets: Budgets) -> _Judged:
    first, second = _preference(budgets)
    least = min(map(first, fit))
    tied = [one for one in fit if first(one) <= least * (1 + TIE)]
    return min(
        tied,
        key=lambda one: (
            second(one),
            first(one),
            one.candidate.transfer_bytes,
            one.candidate.name,
        ),
    )


def _why(
    best: _Judged,
    fit: Sequence[_Judged],
    lifted: bool,
    baselines: Sequence[Candidate],
    budgets: Budgets,
) -> str:
    if lifted:
        return "no other variant qualifies; the original in float32 keeps every other budget"
    count = len(fit)
    first, second = ("smallest", "fastest")[:: 1 if budgets.prefer == "size" else -1]
    rank = f"the {first} of the {count}"
    if min(fit, key=_preference(budgets)[0]) is not best:
        rank = f"the {second} of the {first} (within {TIE:.0%}) of the {count}"
    if count == 1:
        rank = "the only one"
    largest = max((base.size_bytes for base in baselines), default=0)
    share = (
        f", {largest / best.candidate.size_bytes:.1f} times smaller than float32"
        if largest > best.candidate.size_bytes and not best.candidate.lossless
        else ""
    )
    return f"{rank} that keep{'s' if count == 1 else ''} every budget{share}"


def _why_not_preferred(one: _Judged, best: _Judged) -> str:
    mine, its = one.candidate, best.candidate
    return (
        f"keeps every budget, but {its.name} is preferred: {its.size_bytes:,} bytes and"
        f" {best.latency_us:,.1f} µs, against {mine.size_bytes:,} bytes and"
        f" {one.latency_us:,.1f} µs"
    )


def _what_is_missing(judged: Sequence[_Judged], board: BoardView) -> str:
    """Say what the float32 variant, or else the nearest one, fails by."""
    if not judged:
        return "nothing could be made from the model"
    nearest = min(judged, key=lambda one: (len(one.all_reasons), not one.candidate.lossless))
    return (
        f"no variant qualifies for {board.title}, not even float32; nearest is"
        f" {nearest.candidate.name}, which fails by: {'; '.join(nearest.all_reasons)}"
    )


def _notes(board: BoardView, chosen: Candidate | None, budgets: Budgets) -> list[str]:
    if chosen is None:
        return []
    there = board.measured.get(chosen.digest)
    if there is not None and there.model.latency_us is not None:
        return [f"timed on this board with {there.source}"]
    if board.here:
        return [f"timed here, on a machine of the board's architecture ({board.architecture})"]
    unmeasured = (
        f"not measured on this board: times were taken on {platform.machine()}, the board is"
        f" {board.architecture}; measure the bundles on it and search again"
    )
    notes = [unmeasured]
    if budgets.max_latency_us:
        notes.append(
            f"the budget of {budgets.max_latency_us:,} µs stands in the manifest: the device"
            " measures it in its trial and refuses what is over"
        )
    return notes


def _ends(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"


def chosen_for(choices: Sequence[Choice]) -> Mapping[str, list[str]]:
    """Return variant → the boards that get it, in the order of the choices."""
    found: dict[str, list[str]] = {}
    for choice in choices:
        if choice.chosen is not None:
            found.setdefault(choice.chosen, []).append(choice.board)
    return found
