"""The workshop: make many recipes from one opened model, in one child process.

1. A recipe begins at the base from which it takes the fewest steps; conversions between formats
   are filled in. A recipe that no base leads to is refused.
2. Recipes that begin alike share those steps: each distinct beginning is carried out once.
3. What is made lies in a folder at once. A step that raises refuses the recipes that go through it.
   One that kills the child, hangs or takes too much memory does so too: the child is started
   again, and goes on from what lies in the folder.
4. What the child wrote is decoded as the declared types, as an answer of any child.
"""

import contextlib
import itertools
import logging
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from edgefleet_converters import child
from edgefleet_converters.child import ChildLimits, Progress
from edgefleet_converters.errors import ChildError, ConversionError, UnsupportedError
from edgefleet_converters.recipes.recipe import Recipe, StepCall
from edgefleet_converters.steps import registry
from edgefleet_converters.steps.registry import Context, Format, Model, Step
from edgefleet_protocol.identifiers import digest_of

logger = logging.getLogger(__name__)

# Of one step: fine-tuning a small network on a busy machine is the longest, at a few minutes.
STEP_TIME_S = 900.0
_NOW = "now"


class Refused(Struct, frozen=True):
    """Why a recipe made nothing.

    Attributes:
        crashed: whether a step killed its process, hung or took too much memory. That may turn out
            otherwise on another machine; any other refusal is the same every time.
    """

    reason: str
    crashed: bool = False


class Plan(Struct, frozen=True):
    """A recipe with its conversions filled in.

    Attributes:
        base: format that it begins from.
    """

    recipe: Recipe
    base: Format
    calls: list[StepCall]

    @property
    def beginnings(self) -> list[str]:
        """One key for each step: equal for plans that are equal up to and with it."""
        texts = itertools.accumulate((call.key for call in self.calls), "{}\n{}".format)
        return [digest_of(f"{self.base}\n{text}".encode()) for text in texts]


def plan(recipe: Recipe, bases: Iterable[Format]) -> Plan:
    """Choose the base of a recipe and fill its jumps between formats.

    Raises:
        UnsupportedError: no base leads to the recipe's steps or to what it gives.
    """
    steps = [registry.find(call.step) for call in recipe.steps]
    plans: list[Plan] = []
    for base in bases:
        calls = _filled(recipe, steps, base)
        if calls is not None:
            plans.append(Plan(recipe, base, calls))
    if not plans:
        takes = steps[0].takes if steps else (recipe.gives,)
        raise UnsupportedError(
            f"is made from {' or '.join(sorted(_sources(takes)))}; this model comes as"
            f" {' and '.join(bases)}"
        )
    return min(plans, key=lambda made: len(made.calls))


def make(
    bases: dict[Format, Model],
    recipes: Iterable[Recipe],
    context: Context,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    limits: ChildLimits | None = None,
) -> dict[str, Model | Refused]:
    """Make recipes.

    Args:
        bases: of the opened model.
        recipes: with different names.
        context: what steps learn from.
        progress: is told the share of steps done and what is being made. If it raises, the child
            is killed and the exception goes on.
        folder: keeps what is made, so that another call with the same bases and context goes on
            from it; crashes are tried again. None to keep nothing.
        limits: of the child; its time is that of one step.

    Returns:
        Recipe name → what it made, or why it was refused; in the order of the recipes.
    """
    limits = limits or ChildLimits(STEP_TIME_S)
    limits = msgspec.structs.replace(limits, from_report=True)
    outcome: dict[str, Model | Refused] = {}
    plans: list[Plan] = []
    for recipe in recipes:
        outcome[recipe.name] = Refused("")
        try:
            plans.append(plan(recipe, bases))
        except UnsupportedError as error:
            outcome[recipe.name] = Refused(str(error))
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-")))
        _forget_crashes(folder)
        _carry_out_all(bases, plans, context, folder, limits, progress)
        for made in plans:
            outcome[made.recipe.name] = _collect(made, bases, folder)
    return outcome


def _forget_crashes(folder: Path) -> None:
    (folder / _NOW).unlink(missing_ok=True)
    for file in folder.glob("*.refused"):
        if msgspec.msgpack.decode(file.read_bytes(), type=Refused).crashed:
            file.unlink()


def _carry_out_all(
    bases: dict[Format, Model],
    plans: list[Plan],
    context: Context,
    folder: Path,
    limits: ChildLimits,
    progress: Progress | None,
) -> None:
    """Carry out all plans; where a step crashes the child, refuse it and go on."""
    while not all(_is_done(folder, made) for made in plans):
        try:
            child.run(
                "making the variants",
                _carry_out,
                bases,
                plans,
                context,
                str(folder),
                returns=int,
                limits=limits,
                progress=progress,
            )
        except ChildError as error:
            now = folder / _NOW
            if not now.exists():
                raise  # before the first step: nothing to leave out
            beginning, step = now.read_text(encoding="utf-8").split("\n")
            now.unlink()
            _refuse(folder, beginning, Refused(f"step {step}: {error}", crashed=True))
        else:
            return


def _carry_out(
    bases: dict[Format, Model], plans: list[Plan], context: Context, folder_name: str
) -> int:
    """Carry out, in the child, what does not lie in the folder yet; return the number of steps."""
    folder = Path(folder_name)
    total = len({beginning for made in plans for beginning in made.beginnings})
    seen: set[str] = set()
    for made in plans:
        model = bases[made.base]
        for call, beginning in zip(made.calls, made.beginnings, strict=True):
            if beginning not in seen:
                seen.add(beginning)
                child.report(len(seen) / (total + 1), f"{made.recipe.name}: {call.step}")
            if _refusal(folder, beginning) is not None:
                break
            ready = _model(folder, beginning) or _take(folder, beginning, call, model, context)
            if ready is None:
                break
            model = ready
    return total


def _take(
    folder: Path, beginning: str, call: StepCall, model: Model, context: Context
) -> Model | None:
    """Carry out one step and lay its result, or its refusal, into the folder."""
    now = folder / _NOW
    now.write_text(f"{beginning}\n{call.step}", encoding="utf-8")
    step = registry.find(call.step)
    made: Model | None = None
    try:
        made = step.run(model, step.configure(call.options), context)
        data = msgspec.msgpack.encode(made)
    except ConversionError as error:
        _refuse(folder, beginning, Refused(str(error)))
    except MemoryError:
        raise  # the child's, not the step's: as where the parent finds that it takes too much
    except Exception as error:  # libraries behind the steps raise errors of no common class
        made = None  # where it gave a model with notes that cannot be written
        logger.exception("step %s failed", call.step)
        text = " ".join(str(error).split())[:400]
        _refuse(folder, beginning, Refused(f"step {call.step}: {type(error).__name__}: {text}"))
    else:
        # Whole or not at all: the child may be killed at any time.
        (folder / "part").write_bytes(data)
        (folder / "part").replace(folder / beginning)
    now.unlink()
    return made


def _collect(made: Plan, bases: dict[Format, Model], folder: Path) -> Model | Refused:
    for beginning in made.beginnings:
        refused = _refusal(folder, beginning)
        if refused is not None:
            return refused
    if not made.calls:
        return bases[made.base]
    model = _model(folder, made.beginnings[-1])
    if model is None:
        raise ChildError(f"making {made.recipe.name}: the child left without an answer")
    return model


def _is_done(folder: Path, made: Plan) -> bool:
    last = made.beginnings[-1:]
    return all((folder / beginning).exists() for beginning in last) or any(
        (folder / f"{beginning}.refused").exists() for beginning in made.beginnings
    )


def _model(folder: Path, beginning: str) -> Model | None:
    file = folder / beginning
    return msgspec.msgpack.decode(file.read_bytes(), type=Model) if file.exists() else None


def _refusal(folder: Path, beginning: str) -> Refused | None:
    file = folder / f"{beginning}.refused"
    return msgspec.msgpack.decode(file.read_bytes(), type=Refused) if file.exists() else None


def _refuse(folder: Path, beginning: str, refused: Refused) -> None:
    (folder / f"{beginning}.refused").write_bytes(msgspec.msgpack.encode(refused))


def _filled(recipe: Recipe, steps: list[Step], base: Format) -> list[StepCall] | None:
    """Return the steps of a recipe from one base, with conversions; None if there is no way."""
    calls: list[StepCall] = []
    current = base
    for call, step in zip(recipe.steps, steps, strict=True):
        way = _way(current, step.takes)
        if way is None:
            return None
        calls += [*way, call]
        current = step.gives
    way = _way(current, (recipe.gives,))
    return None if way is None else [*calls, *way]


def _way(source: Format, targets: tuple[Format, ...]) -> list[StepCall] | None:
    """Return the shortest list of conversions from a format to one of several."""
    ways: deque[tuple[Format, list[StepCall]]] = deque([(source, [])])
    seen = {source}
    while ways:
        current, calls = ways.popleft()
        if current in targets:
            return calls
        for step in _conversions():
            if current in step.takes and step.gives not in seen:
                seen.add(step.gives)
                ways.append((step.gives, [*calls, StepCall(step.name)]))
    return None


def _conversions() -> Iterator[Step]:
    for step in registry.all_steps().values():
        if any(step.name == f"{source}-to-{step.gives}" for source in step.takes):
            yield step


def _sources(takes: tuple[Format, ...]) -> set[Format]:
    """Return the formats from which a step can be reached."""
    formats: tuple[Format, ...] = ("keras", "savedmodel", "onnx", "tflite")
    return {source for source in formats if _way(source, takes) is not None}
