"""The outcome of a search, and the views of it that reports share. Pure."""

from msgspec import Struct

from edgefleet_converters.searching import pareto
from edgefleet_converters.searching.budgets import BudgetPlan, Budgets
from edgefleet_converters.searching.candidates import Candidate, Unmade, costs
from edgefleet_converters.searching.choice import Choice
from edgefleet_protocol.manifest import Task

FORMAT_VERSION = 1


class Machine(Struct, frozen=True):
    """Where everything was measured.

    Attributes:
        cpu: as it calls itself.
        architecture: as `platform.machine()` names it.
        libraries: name → version.
    """

    cpu: str
    architecture: str
    libraries: dict[str, str]


class Found(Struct, frozen=True):
    """Everything that a search found out.

    Attributes:
        model: name of the model; `version` of it.
        metric: by which variants are compared, with `rows` (or groups) held out and the
            `original_score` of the original on them.
        labelled: whether there were labels; without them the original's answers are right.
        candidates: that could be made, in the order in which they were tried.
        unmade: recipes that gave nothing.
        choices: one for each board, in the order in which they were asked for.
        notes: what a reader must know of how the search went.
        seconds: phase → wall time.
    """

    model: str
    version: str
    task: Task
    metric: str
    rows: int
    original_score: float
    labelled: bool
    plan: BudgetPlan
    machine: Machine
    candidates: list[Candidate]
    unmade: list[Unmade]
    choices: list[Choice]
    notes: list[str]
    seconds: dict[str, float]
    format_version: int = FORMAT_VERSION

    @property
    def sound(self) -> list[Candidate]:
        """Candidates that passed verification."""
        return [candidate for candidate in self.candidates if not candidate.faults]

    @property
    def front(self) -> list[str]:
        """Names of the sound candidates that no other beats in bytes, latency, drop and memory."""
        return pareto.front({candidate.name: costs(candidate) for candidate in self.sound})

    @property
    def float32(self) -> Candidate | None:
        """The largest float32 variant, by which "times smaller" is meant."""
        lossless = [candidate for candidate in self.sound if candidate.lossless]
        return max(lossless, key=lambda candidate: candidate.size_bytes, default=None)

    @property
    def how(self) -> list[str]:
        """How everything was measured, in sentences."""
        libraries = ", ".join(f"{name} {held}" for name, held in self.machine.libraries.items())
        what = "groups" if self.metric == "reconstruction-auc" else "rows"
        share = f"{self.plan.confidence:.0%}"
        spent = ", ".join(f"{phase} {value:.0f} s" for phase, value in self.seconds.items())
        compared = (
            f"The original has {self.metric} {self.original_score:.4f} on {self.rows:,} held-out"
            f" {what}. A drop is the original's minus the variant's on the same {what}, with its"
            f" {share} interval by paired bootstrap."
        )
        timed = (
            "Times are of one row at one thread. For × float32, the variant and those in float32"
            " were loaded side by side again and again, and run in turns, so that noise hits all;"
            f" slower is decided on the {share} interval of the ratio."
        )
        return [
            compared,
            timed,
            f"Measured on {self.machine.cpu} ({self.machine.architecture}) with {libraries}.",
            *self.notes,
            f"Time spent: {spent}.",
        ]

    def candidate(self, name: str) -> Candidate:
        """Return a candidate by name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def why_lost(self, candidate: Candidate) -> list[tuple[list[str], list[str]]]:
        """Return why a candidate lost, as `(boards, reasons)`: boards with equal reasons once."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for choice in self.choices:
            if choice.chosen != candidate.name:
                reasons = tuple(choice.losers[candidate.name])
                groups.setdefault(reasons, []).append(choice.board)
        return [(boards, list(reasons)) for reasons, boards in groups.items()]

    def chosen_by(self, candidate: Candidate) -> list[str]:
        """Return the boards that get a candidate."""
        return [choice.board for choice in self.choices if choice.chosen == candidate.name]


def budget_words(budgets: Budgets) -> list[str]:
    """Return budgets as phrases."""
    words = [
        (budgets.max_bytes, f"the file at most {budgets.max_bytes:,} bytes"),
        (budgets.max_transfer_bytes, f"sent in at most {budgets.max_transfer_bytes:,} bytes"),
        (budgets.max_latency_us, f"one row in at most {budgets.max_latency_us:,} µs"),
        (budgets.max_memory_bytes, f"at most {budgets.max_memory_bytes:,} bytes of memory"),
    ]
    evidence = "proven" if budgets.evidence == "proven" else "not refuted"
    return [
        *(text for limit, text in words if limit),
        f"the metric drops by at most {budgets.max_drop:g} ({evidence})",
    ]


def loss_words(candidate: Candidate) -> str:
    """Return the drop of a candidate with its interval."""
    if candidate.evidence is None:
        return "not comparable"
    drop = candidate.evidence.drop
    return f"{drop.point:+.4f} ({drop.low:+.4f} to {drop.high:+.4f})"
