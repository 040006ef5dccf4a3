"""What kinds of jobs there are, and where their parts are.

A kind has three parts, named as `module:function` and imported only where they run:

- `work(context, **arguments) -> Json` runs in the job's own process. It may import TensorFlow or
  load a pickle. It reads and writes only the content-addressed store and its scratch folder, never
  the database, so running it again after a crash changes nothing.
- `finish(session, store, job, result, now) -> Json` runs in the hub, in the very transaction that
  marks the job succeeded; what it returns is the job's result. So a job's effect on the database
  happens exactly once, however often its work ran.
- `fail(session, job, error, now)` runs likewise when the job has failed for good.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The parts of one kind of job, as `module:function`; picklable."""

    work: str
    finish: str
    fail: str


_TRAIN = Kind(
    work="edgefleet_cloud.training.work:train",
    finish="edgefleet_cloud.training.outcome:finish",
    fail="edgefleet_cloud.training.outcome:fail",
)
KINDS = {
    # A fitted model that was handed in: convert, register, release, roll out.
    "convert_and_register": Kind(
        work="edgefleet_cloud.training.work:convert",
        finish="edgefleet_cloud.training.outcome:finish",
        fail="edgefleet_cloud.training.outcome:fail",
    ),
    # Bundles that were made elsewhere: verify, register, and if asked release and roll out.
    "register_bundles": Kind(
        work="edgefleet_cloud.training.work:take_bundles",
        finish="edgefleet_cloud.training.outcome:finish",
        fail="edgefleet_cloud.training.outcome:fail",
    ),
    "train": _TRAIN,
    # The best variants of a version that is here, one for each board; register them.
    "search": Kind(
        work="edgefleet_cloud.training.search_work:search",
        finish="edgefleet_cloud.training.outcome:finish",
        fail="edgefleet_cloud.training.outcome:fail",
    ),
    # As `train`, and its result holds how the champion does on the same hold-out rows.
    "retrain": _TRAIN,
}


def load(path: str) -> Any:
    """Return the function that `path` (`module:function`) names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
