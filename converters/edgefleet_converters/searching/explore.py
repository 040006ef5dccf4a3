"""Which points of the spaces are tried: all of them if there are few, else what optuna proposes.

1. Points are proposed in rounds, so that a round is made in one go and shares its steps.
2. If all spaces together have no more points than the trials allowed, every point is tried, and
   optuna is not needed.
3. Else a multi-objective TPE sampler (Ozaki et al., GECCO 2020), seeded, in memory, proposes points
   that are small, fast and right; what is over the drop counts as infeasible. The default of each
   space goes first.
4. A space of which `GIVE_UP` points could not be made, and none could, is left out.
5. No point is tried twice. Where the sampler only proposes known points, the search ends early.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from edgefleet_converters.searching.space import Space

GIVE_UP = 2
# Bytes, latency, drop: memory goes with the bytes, and a fourth objective needs many more trials.
OBJECTIVES = 3
# Stands for what could not be made, so that the sampler stays away from it.
_WORST = 1e12
# Proposals in a row that are all known before a search ends.
_PATIENCE = 50


class Proposal(Struct, frozen=True):
    """A point to try. `number` counts the trials of a search from 0."""

    number: int
    space: str
    point: tuple[int, ...]


class Outcome(Struct, frozen=True):
    """What came of a proposal: its costs, and by how much its drop is over the budget."""

    costs: tuple[float, ...]
    excess: float


class Explorer(Protocol):
    """A way through the spaces."""

    def propose(self, most: int) -> list[Proposal]:
        """Return up to `most` new points; none if there is nothing more to try."""

    def tell(self, outcomes: Mapping[int, Outcome | None]) -> None:
        """Learn what came of proposals, by number; None where nothing could be made."""

    @property
    def note(self) -> str:
        """How the spaces were searched, and what was left out, in a sentence."""


def explorer(spaces: Sequence[Space], trials: int, seed: int) -> Explorer:
    """Return the way through spaces that a number of trials allows."""
    if sum(space.size for space in spaces) <= trials:
        return Exhaustive(spaces)
    return Sampled(spaces, trials, seed)


class _GivenUp:
    """Spaces of which nothing can be made."""

    def __init__(self) -> None:
        self._failed: dict[str, int] = {}
        self._made: set[str] = set()

    def learn(self, space: str, made: bool) -> None:
        if made:
            self._made.add(space)
        else:
            self._failed[space] = self._failed.get(space, 0) + 1

    def __contains__(self, space: str) -> bool:
        return space not in self._made and self._failed.get(space, 0) >= GIVE_UP

    @property
    def note(self) -> str:
        left = sorted(space for space in self._failed if space in self)
        return f"; left out, because nothing could be made of it: {', '.join(left)}" if left else ""


class Exhaustive:
    """Every point of every space, in order: the defaults of all spaces first."""

    def __init__(self, spaces: Sequence[Space]) -> None:
        points = [(space.name, point) for space in spaces for point in space.points()]
        points.sort(key=lambda entry: any(entry[1]))
        self._waiting = points
        self._spaces: dict[int, str] = {}
        self._given_up = _GivenUp()
        self._size = len(points)

    def propose(self, most: int) -> list[Proposal]:
        """Return the next points."""
        self._waiting = [entry for entry in self._waiting if entry[0] not in self._given_up]
        now, self._waiting = self._waiting[:most], self._waiting[most:]
        proposals = [
            Proposal(len(self._spaces) + i, name, point) for i, (name, point) in enumerate(now)
        ]
        self._spaces |= {proposal.number: proposal.space for proposal in proposals}
        return proposals

    def tell(self, outcomes: Mapping[int, Outcome | None]) -> None:
        """Learn which spaces nothing can be made of."""
        for number, outcome in outcomes.items():
            self._given_up.learn(self._spaces[number], outcome is not None)

    @property
    def note(self) -> str:
        """How the spaces were searched."""
        tried = len(self._spaces)
        return f"{tried} of all {self._size} points of the spaces were tried{self._given_up.note}"


class Sampled:
    """Points that optuna proposes."""

    def __init__(self, spaces: Sequence[Space], trials: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["minimize"] * OBJECTIVES,
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 3)),
        )
        self._spaces = {space.name: space for space in spaces}
        self._trials = trials
        self._asked: dict[int, tuple[Any, Proposal]] = {}
        self._tried: dict[tuple[str, tuple[int, ...]], Outcome | None] = {}
        self._given_up = _GivenUp()
        self._stuck = False
        for space in spaces:
            self._study.enqueue_trial(
                {"space": space.name} | {_key(space, i): 0 for i in range(len(space.dimensions))}
            )

    def propose(self, most: int) -> list[Proposal]:
        """Return what the sampler proposes and has not been tried."""
        found: list[Proposal] = []
        known_in_a_row = 0
        while len(found) < most and len(self._asked) < self._trials and not self._stuck:
            trial = self._study.ask()
            space = self._spaces[trial.suggest_categorical("space", sorted(self._spaces))]
            point = tuple(
                trial.suggest_categorical(_key(space, i), list(range(len(dimension.values))))
                for i, dimension in enumerate(space.dimensions)
            )
            if (space.name, point) in self._tried or space.name in self._given_up:
                self._end(trial, self._tried.get((space.name, point)))
                known_in_a_row += 1
                self._stuck = known_in_a_row >= _PATIENCE
                continue
            known_in_a_row = 0
            proposal = Proposal(len(self._asked), space.name, point)
            self._asked[proposal.number] = (trial, proposal)
            self._tried[(space.name, point)] = None
            found.append(proposal)
        return found

    def tell(self, outcomes: Mapping[int, Outcome | None]) -> None:
        """Let the sampler learn."""
        for number, outcome in sorted(outcomes.items()):
            trial, proposal = self._asked[number]
            self._given_up.learn(proposal.space, outcome is not None)
            self._tried[(proposal.space, proposal.point)] = outcome
            self._end(trial, outcome)

    def _end(self, trial: Any, outcome: Outcome | None) -> None:
        outcome = outcome or Outcome((_WORST,) * OBJECTIVES, _WORST)
        trial.set_constraint("drop", outcome.excess)
        self._study.tell(trial, [min(cost, _WORST) for cost in outcome.costs[:OBJECTIVES]])

    @property
    def note(self) -> str:
        """How the spaces were searched."""
        size = sum(space.size for space in self._spaces.values())
        early = " (it ended early: the sampler found nothing new)" if self._stuck else ""
        return (
            f"{len(self._asked)} of {size} points of the spaces were tried, as a sampler proposed"
            f" them{early}; the rest was not, so a better one may be among them"
            f"{self._given_up.note}"
        )


def _key(space: Space, index: int) -> str:
    return f"{space.name}.{index}"
