"""Try one variant: run and judge it, look at its file, time it beside float32; keep all of it.

Each part is kept under everything that decides it. A variant that did not run at all may do so
another time (it crashed, or the machine was out of memory), so that is not kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import structs

from edgefleet_converters import child
from edgefleet_converters.compatibility import check
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compiling import compile_tried, try_variant
from edgefleet_converters.conversion import Compiled, DeviceBudget, Limits
from edgefleet_converters.errors import ConversionError
from edgefleet_converters.opening import Prepared
from edgefleet_converters.recipes import recipe as recipes
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.searching import cache as caches
from edgefleet_converters.searching import timing
from edgefleet_converters.searching.cache import Cache
from edgefleet_converters.searching.candidates import Candidate, Distribution
from edgefleet_converters.searching.timing import Compared
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification.trial import Trial
from edgefleet_protocol import codec
from edgefleet_protocol.identifiers import digest_of

# The search decides by budgets, so verification refuses only what is broken.
_LIMITS = Limits(lossy_score_drop=1e9, lossy_agreement=0.0)
# Rows that are timed one after the other.
_TIMED_ROWS = 8


@dataclass(frozen=True)
class Tried:
    """A variant that ran.

    Attributes:
        candidate: what is known of it; without times beside others.
        compiled: its files.
        facts: of its file, for static checks.
    """

    candidate: Candidate
    compiled: Compiled
    facts: Facts


@dataclass(frozen=True)
class Bench:
    """Where variants are tried.

    Attributes:
        prepared: the original.
        key: of everything that decides what steps and runtimes do.
        machine: name of this machine's CPU, for what is timed.
        confidence: of intervals.
    """

    prepared: Prepared
    cache: Cache
    key: str
    machine: str
    confidence: float

    def run(self, recipe: Recipe, made: Model, trial: int | None) -> Tried | str:
        """Run and judge what a recipe made; return why not, where it could not be run."""
        digest = digest_of(made.data)
        try:
            compiled = self._compiled(recipe, made, digest)
        except ConversionError as error:
            return str(error)
        if compiled.latency is None or compiled.needs is None:
            return compiled.reason
        candidate = Candidate(
            recipe.name,
            recipes.dump(recipe),
            compiled.runtime,
            recipe.is_exact,
            trial,
            digest,
            len(made.data),
            min(len(made.data), len(codec.compress(made.data))),
            compiled.needs.memory_bytes,
            compiled.peak_bytes,
            Distribution(compiled.latency.p50_us, compiled.latency.p90_us, compiled.latency.p99_us),
            {},
            compiled.evidence,
            faults=[compiled.reason] if compiled.reason else [],
            notes=compiled.notes,
        )
        return Tried(candidate, compiled, self._facts(digest, made.data))

    def time(self, tried: Tried, model: Model, others: Mapping[str, Model]) -> Candidate:
        """Return the candidate with its times beside float32 variants.

        Args:
            tried: has passed verification.
            model: of it.
            others: float32 variant → its model.
        """
        candidate = tried.candidate
        beside = {name: other for name, other in others.items() if name != candidate.name}
        digests = {name: digest_of(other.data) for name, other in beside.items()}
        name = caches.key("timed", self.machine, self.key, candidate.digest, digests)
        compared = self.cache.find(name, Compared)
        if compared is None:
            try:
                compared = child.run(
                    f"timing {candidate.name}",
                    timing.compare,
                    model,
                    beside,
                    self.prepared.trial.take(slice(0, _TIMED_ROWS)),
                    self.confidence,
                    returns=Compared,
                )
            except ConversionError as error:
                return structs.replace(candidate, faults=[f"could not be timed: {error}"])
            self.cache.keep(name, compared)
        return structs.replace(candidate, against=compared.against, kernels=compared.kernels)

    def _compiled(self, recipe: Recipe, made: Model, digest: str) -> Compiled:
        ran_under = caches.key("ran", self.key, self.machine, digest)
        name = caches.key("compiled", ran_under, recipe.name, self.confidence)
        compiled = self.cache.find(name, Compiled)
        if compiled is None:
            ran = self.cache.find(ran_under, Trial)
            if ran is None:
                ran = try_variant(self.prepared, recipe, made)
                self.cache.keep(ran_under, ran)
            compiled = compile_tried(
                self.prepared,
                recipe,
                made,
                ran,
                limits=_LIMITS,
                budget=DeviceBudget(),
                confidence=self.confidence,
            )
            self.cache.keep(name, compiled)
        return compiled

    def _facts(self, digest: str, data: bytes) -> Facts:
        name = caches.key("facts", caches.versions(), digest)
        facts = self.cache.find(name, Facts)
        if facts is None:
            facts = check.inspect(data)
            self.cache.keep(name, facts)
        return facts
