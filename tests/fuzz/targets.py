"""What is fuzzed: a table of targets, each a decoder with its documented refusals."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

from tests.fuzz.forms import Form
from tests.fuzz.oracle import Bounds, Take

CORPUS = Path(__file__).parent / "corpus"
# Modules of targets; but those of `protocol`, targets are named after theirs.
ROOMS = ("protocol", "agent", "hub", "trust")


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        name: of the target and of its folder in the corpus.
        open: gives the function that takes inputs, and whatever it needs around it.
        refusals: errors by which it refuses; all others are defects.
        seeds: makes real inputs, all of which it accepts.
        form: of the inputs, for changes that keep their structure.
        bounds: what one input may cost.
        guided: also fuzz it guided by coverage: for fast decoders of bytes without state.
    """

    name: str
    open: Callable[[], AbstractContextManager[Take]]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]
    form: Form | None = None
    bounds: Bounds = field(default_factory=Bounds)
    guided: bool = False

    def corpus(self) -> list[tuple[str, bytes]]:
        """Return the kept inputs with their file names: seeds, and whatever failed once."""
        folder = CORPUS / self.name
        return [(path.name, path.read_bytes()) for path in sorted(folder.glob("*"))]


def pure(take: Take) -> Callable[[], AbstractContextManager[Take]]:
    """Return `open` of a decoder that needs nothing around it."""
    return lambda: nullcontext(take)


def every(names: Iterable[str] = ROOMS) -> list[Target]:
    """Return all targets, or those of some rooms: each module imports its room."""
    modules = [import_module(f"tests.fuzz.{name}_targets") for name in names]
    return [target for module in modules for target in module.TARGETS]


def named(name: str) -> Target:
    """Return one target.

    Raises:
        KeyError: if there is none of that name.
    """
    room = name.partition("-")[0]
    targets = every([room if room in ROOMS else "protocol"])
    return {target.name: target for target in targets}[name]


def select(targets: Iterable[Target], pattern: str) -> Iterator[Target]:
    """Yield the targets whose name matches a shell pattern; all for an empty one."""
    return (target for target in targets if not pattern or fnmatch(target.name, pattern))
