"""A search: from a model file to one variant for each board.

1. Open the model with its samples, and hold rows out (`opening`).
2. Make all recipes (`recipes.workshop`), run each on its runtime, compare it with the original, and
   time it beside float32 (`trying`).
3. Make and try points of the spaces, in rounds, as the explorer proposes them.
4. For each board: check every file statically, and choose (`choice`).

What was found out lies in the cache as soon as it is known, so that a search may be interrupted,
and one with other budgets, boards or measurements runs nothing again. Budgets never hide a variant:
everything is tried, and the report says why it lost.
"""

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from edgefleet_converters import opening
from edgefleet_converters.compatibility import boards
from edgefleet_converters.conversion import VARIANTS, Compiled, ConversionRequest
from edgefleet_converters.errors import BadInputError, NothingVerifiedError, UnsupportedError
from edgefleet_converters.opening import Prepared
from edgefleet_converters.profile import reference_profile
from edgefleet_converters.recipes import recipe as recipes
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.recipes.workshop import Refused
from edgefleet_converters.routes.opened import Opened
from edgefleet_converters.searching import cache as caches
from edgefleet_converters.searching import choice, explore, targets
from edgefleet_converters.searching.budgets import BudgetPlan
from edgefleet_converters.searching.cache import Cache
from edgefleet_converters.searching.candidates import Candidate, Unmade, costs
from edgefleet_converters.searching.explore import Outcome
from edgefleet_converters.searching.found import Found, Machine
from edgefleet_converters.searching.measurements import MeasurementFile
from edgefleet_converters.searching.space import Space
from edgefleet_converters.searching.targets import Target
from edgefleet_converters.searching.trying import Bench, Tried
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification.truth import rate
from edgefleet_protocol import sketch

Progress = Callable[[float, str], None]

# Points that are made in one go: few enough that the sampler learns, enough to share steps.
_ROUND = 6
# Share of the progress at which each phase ends, as seen on a small network.
_OPENED, _RECIPES, _SPACES = 0.1, 0.6, 0.98


class SearchRequest(Struct, frozen=True):
    """What to search for.

    Attributes:
        conversion: the model and its samples. Its `recipes` are tried besides the built-in ones,
            which its `variants` narrow down; its limits and its budget are not looked at.
        model: name of the model, `version` of it, for bundles.
        targets: boards that a variant is wanted for; at least one.
        spaces: out of which further recipes are drawn, at most `trials`.
        measurements: figures from boards.
        cache: folder that keeps what is found out; None to keep nothing.
    """

    conversion: ConversionRequest
    model: str
    version: str
    targets: list[Target]
    plan: BudgetPlan
    spaces: list[Space]
    trials: int
    measurements: list[MeasurementFile]
    cache: str | None


@dataclass(frozen=True)
class Searched:
    """What a search leaves: what it found, and what bundles are made of.

    Attributes:
        compiled: candidate → its files.
        reference: bytes of the reference profile.
    """

    found: Found
    compiled: dict[str, Compiled]
    reference: bytes


@dataclass
class _Study:
    """A search under way.

    Attributes:
        tried: what ran, `models` the files, `timed` what is known of them in the end.
        same: recipe that gave a known file → the recipe that gave it first.
    """

    request: SearchRequest
    prepared: Prepared
    bench: Bench
    workshop_folder: Path
    progress: Progress
    tried: dict[str, Tried] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    timed: dict[str, Candidate] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    unmade: list[Unmade] = field(default_factory=list)

    @property
    def float32(self) -> dict[str, Model]:
        """What variants are timed beside."""
        return {
            name: self.models[name]
            for name, tried in self.tried.items()
            if tried.candidate.lossless and not tried.candidate.faults
        }

    def make(
        self, wanted: Sequence[Recipe], trials: Sequence[int | None], begin: float, end: float
    ) -> None:
        """Make recipes, and run and judge what comes of them.

        Args:
            wanted: recipes.
            trials: number of the trial behind each recipe; None for none.
            begin: share of the progress where this begins.
            end: where it ends.
        """
        middle = begin + (end - begin) / 2
        made_of = workshop.make(
            self.prepared.opened.bases,
            wanted,
            self.prepared.context,
            lambda share, text: self.progress(begin + share * (middle - begin), text),
            folder=self.workshop_folder,
        )
        for place, (recipe, trial) in enumerate(zip(wanted, trials, strict=True)):
            self.progress(middle + place / len(wanted) * (end - middle), f"running {recipe.name}")
            reason = self._run(recipe, made_of[recipe.name], trial)
            if reason:
                self.unmade.append(Unmade(recipe.name, recipes.dump(recipe), trial, reason))

    def time(self) -> None:
        """Time everything beside float32 that was not timed yet."""
        beside = self.float32
        for name, tried in self.tried.items():
            if name not in self.timed:
                self.timed[name] = (
                    tried.candidate
                    if tried.candidate.faults
                    else self.bench.time(tried, self.models[name], beside)
                )

    def _run(self, recipe: Recipe, made: Model | Refused, trial: int | None) -> str:
        """Run and judge one; return why there is nothing to run."""
        if isinstance(made, Refused):
            return made.reason
        tried = self.bench.run(recipe, made, trial)
        if isinstance(tried, str):
            return f"made, but could not be run: {tried}"
        for name, known in self.tried.items():
            if known.candidate.digest == tried.candidate.digest:
                self.same[recipe.name] = name
                self._note(name, tried.candidate.notes)
                return f"is the same file as {name}"
        self.tried[recipe.name], self.models[recipe.name] = tried, made
        return ""

    def _note(self, name: str, notes: dict[str, Any]) -> None:
        """Add what another way to the same file has found out, such as sensitivities."""
        tried = self.tried[name]
        notes = notes | tried.candidate.notes
        self.tried[name] = replace(tried, candidate=structs.replace(tried.candidate, notes=notes))
        if name in self.timed:
            self.timed[name] = structs.replace(self.timed[name], notes=notes)


def search(request: SearchRequest, progress: Progress | None = None) -> Searched:
    """Search for the best variant for each board.

    Args:
        request: what to search for.
        progress: is told how far it is; if it raises, the children are killed and the exception
            goes on.

    Raises:
        BadInputError: the model file, the samples or a recipe cannot be used.
        UnsupportedError: no route converts the model.
        NothingVerifiedError: nothing that was made is right.
        ChildError: the route crashed, hung or ran out of memory.
    """
    _check_boards(request)
    wanted = _recipes(request)
    tell = progress or _tell_nobody
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = request.cache or stack.enter_context(tempfile.TemporaryDirectory())
        with _phase(seconds, "open"):
            tell(0.0, f"opening {request.conversion.model_path}")
            study = _open(request, Cache(Path(folder)), tell)
        with _phase(seconds, "recipes"):
            study.make(wanted, [None] * len(wanted), _OPENED, _RECIPES)
            study.time()
        _require_one(study)
        with _phase(seconds, "spaces"):
            note = _explore(study)
        with _phase(seconds, "choose"):
            tell(_SPACES, "choosing")
            found = _found(study, note, seconds)
    context = study.prepared.context
    reference = reference_profile(context.samples, study.prepared.signature, context.scores)
    tell(1.0, "done")
    compiled = {name: tried.compiled for name, tried in study.tried.items()}
    return Searched(found, compiled, sketch.encode_profile(reference))


def _tell_nobody(fraction: float, text: str) -> None:
    del fraction, text


@contextlib.contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 3)


def _check_boards(request: SearchRequest) -> None:
    """Refuse budgets for a board that does not exist: a misspelt one would have none."""
    known = {*boards.all_boards(), *(target.board.name for target in request.targets)}
    unknown = sorted(set(request.plan.boards) - known)
    if unknown:
        raise BadInputError(
            f"budgets for {', '.join(unknown)}, which is no board; there are:"
            f" {', '.join(sorted(known))}"
        )


def _recipes(request: SearchRequest) -> list[Recipe]:
    """Return what is tried besides the spaces, float32 first.

    Raises:
        BadInputError: an unknown variant, or two recipes of one name.
    """
    conversion = request.conversion
    unknown = sorted(set(conversion.variants or ()) - set(VARIANTS))
    if unknown:
        raise BadInputError(
            f"unknown variants {', '.join(unknown)}; there are: {', '.join(VARIANTS)}"
        )
    known = [
        recipe
        for name, recipe in recipes.builtin().items()
        if conversion.variants is None or name in conversion.variants
    ]
    wanted = known + conversion.recipes
    names = [recipe.name for recipe in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInputError(f"two recipes are called {', '.join(twice)}; give another name")
    return sorted(wanted, key=lambda recipe: not recipe.is_exact)


def _open(request: SearchRequest, cache: Cache, tell: Progress) -> _Study:
    conversion = request.conversion
    paths = (conversion.model_path, conversion.sample_path, conversion.holdout_path)
    key = caches.key(
        [None if path is None else caches.file_digest(Path(path)) for path in paths],
        Path(conversion.model_path).suffix,
        [conversion.label, conversion.group, conversion.metric, conversion.score_output],
        [conversion.classes, conversion.seed],
        caches.versions(),
    )

    def remember(run_route: Callable[[], Opened]) -> Opened:
        opened = cache.find(key, Opened)
        if opened is None:
            opened = run_route()
            cache.keep(key, opened)
        return opened

    prepared = opening.prepare(conversion, remember=remember)
    bench = Bench(prepared, cache, key, caches.cpu_name(), request.plan.confidence)
    return _Study(request, prepared, bench, cache.folder(f"{key}.steps"), tell)


def _require_one(study: _Study) -> None:
    if any(not candidate.faults for candidate in study.timed.values()):
        return
    reasons = {made.name: made.reason for made in study.unmade}
    reasons |= {name: "; ".join(c.faults) for name, c in study.timed.items()}
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    path = study.request.conversion.model_path
    raise NothingVerifiedError(f"{path}: no variant could be verified:{listed}", reasons)


def _explore(study: _Study) -> str:
    """Try points of the spaces; return how that went, in a sentence."""
    request = study.request
    spaces = {space.name: space for space in request.spaces if _applies(space, study.prepared)}
    if not spaces or request.trials == 0:
        return "no spaces were searched: only recipes were tried"
    explorer = explore.explorer(list(spaces.values()), request.trials, request.conversion.seed)
    done = 0
    while proposals := explorer.propose(_ROUND):
        share = (_SPACES - _RECIPES) / request.trials
        begin = _RECIPES + min(done, request.trials) * share
        wanted = [spaces[proposal.space].recipe(proposal.point) for proposal in proposals]
        numbers = [proposal.number for proposal in proposals]
        study.make(wanted, numbers, begin, min(_SPACES, begin + len(wanted) * share))
        study.time()
        explorer.tell(
            {
                proposal.number: _outcome(study, recipe.name)
                for proposal, recipe in zip(proposals, wanted, strict=True)
            }
        )
        done += len(proposals)
    return explorer.note


def _applies(space: Space, prepared: Prepared) -> bool:
    first = next(space.points())
    try:
        workshop.plan(space.recipe(first), prepared.opened.bases)
    except UnsupportedError:
        return False
    return True


def _outcome(study: _Study, name: str) -> Outcome | None:
    candidate = study.timed.get(study.same.get(name, name))
    if candidate is None or candidate.faults or candidate.evidence is None:
        return None
    plan = study.request.plan
    most = max(budgets.max_drop for budgets in (plan.general, *plan.boards.values()))
    return Outcome(costs(candidate), candidate.evidence.drop.high - most)


def _found(study: _Study, note: str, seconds: dict[str, float]) -> Found:
    request, truth = study.request, study.prepared.truth
    candidates = list(study.timed.values())
    facts = {name: tried.facts for name, tried in study.tried.items()}
    digests = {candidate.name: candidate.digest for candidate in candidates}
    choices = []
    for target in request.targets:
        view = targets.view(target, facts, digests, request.measurements, request.plan.confidence)
        choices.append(choice.choose(view, candidates, request.plan.of(target.board.name)))
    rating = rate(truth, truth.original)
    return Found(
        request.model,
        request.version,
        study.prepared.opened.task,
        truth.judged_by,
        rating.units,
        rating.value,
        truth.labels is not None,
        request.plan,
        Machine(study.bench.machine, platform.machine(), caches.versions()),
        candidates,
        study.unmade,
        choices,
        [*_row_notes(request.plan, truth.judged_by, rating.units, truth.labels is not None), note],
        seconds,
    )


def _row_notes(plan: BudgetPlan, metric: str, rows: int, labelled: bool) -> list[str]:
    """Say what the held-out rows can show, and what not."""
    notes = []
    if not labelled:
        notes.append("there are no labels: variants are compared with the original's own answers")
    budgets = (plan.general, *plan.boards.values())
    strictest = min((b.max_drop for b in budgets if b.evidence == "proven"), default=1.0)
    # Where no row differs, the interval still reaches to 3 / rows (verification.evidence).
    if metric == "accuracy" and rows * strictest < 3:
        needed = "no number of" if strictest == 0 else f"at least {round(3 / strictest):,}"
        notes.append(
            f"{rows:,} held-out rows cannot prove a drop of at most {strictest:g}, even if no"
            f" answer changes: that takes {needed} rows"
        )
    return notes
