"""Champion against challenger on the same held-out rows.

Both run as devices run them: the compiled variant on its real runtime, not the model in Python.
The gain of a row is what the challenger does better there:

- classification: right (1) or wrong (0), challenger minus champion;
- regression: squared error, champion minus challenger, over the variance of the truth, so that the
  mean gain is the gain in R².

`gain_se` is the standard error of the mean gain, s/√n: rows are paired, so what both find hard
cancels out. Whether a gain is enough is decided elsewhere (`retraining`).
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_cloud.datasets import content
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.registry.registration import Registration
from edgefleet_cloud.storage import Store
from edgefleet_cloud.values import Json
from edgefleet_converters import answers, runners
from edgefleet_converters.tables import Table
from edgefleet_protocol import manifest
from edgefleet_protocol.manifest import Manifest
from edgefleet_protocol.rows import bind


class Comparison(Struct, frozen=True):
    """How challenger and champion did on the same rows.

    Attributes:
        champion, challenger: versions.
        champion_variant, challenger_variant: what was run.
        holdout: digest of the held-out rows; `rows` of them.
        champion_score, challenger_score: accuracy or R².
        champion_only, challenger_only: rows that only one of them had right (classification, the
            discordant counts of McNemar's test).
        gain: mean gain, challenger_score - champion_score.
        gain_se: its standard error.
    """

    champion: str
    challenger: str
    champion_variant: str
    challenger_variant: str
    holdout: str
    rows: int
    champion_score: float
    challenger_score: float
    champion_only: int
    challenger_only: int
    gain: float
    gain_se: float


def compare(
    store: Store, champion: Json, challenger: Registration, holdout: str, label: str
) -> Comparison:
    """Run both on the held-out rows.

    Args:
        store: holds the bundles of both, and the dataset.
        champion: {"version", "manifests": {variant: digest}}.
        challenger: as made by this job.
        holdout: digest of the dataset.
        label: its label column.

    Raises:
        InvalidError: if they are of different tasks.
    """
    held: dict[str, str] = champion["manifests"]
    made = {v.name: v.manifest for v in challenger.variants if v.manifest is not None}
    both = [name for name in made if name in held]
    old_name, new_name = (both[0], both[0]) if both else (next(iter(held)), next(iter(made)))
    table = content.read(store, holdout)
    old = _gains(store, held[old_name], table, label)
    new = _gains(store, made[new_name], table, label)
    if old[0] != new[0]:
        raise InvalidError(f"the champion is for {old[0]} and the challenger for {new[0]}")
    gain = new[2] - old[2]
    classes = new[0] == "classification"
    return Comparison(
        champion=champion["version"],
        challenger=challenger.version,
        champion_variant=old_name,
        challenger_variant=new_name,
        holdout=holdout,
        rows=len(gain),
        champion_score=old[1],
        challenger_score=new[1],
        champion_only=int((gain < 0).sum()) if classes else 0,
        challenger_only=int((gain > 0).sum()) if classes else 0,
        gain=float(gain.mean()),
        gain_se=float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("inf"),
    )


def _gains(
    store: Store, digest: str, table: Table, label: str
) -> tuple[str, float, NDArray[np.float64]]:
    """Return the task, the score, and what each row adds to the score, `(n,)`."""
    bundle: Manifest = manifest.decode(store.read(digest))
    file, signature = bundle.file("model"), bundle.signature
    model = manifest.unpack_file(file, store.read(file.transfer.digest))
    runner = runners.load(bundle.needs.runtime, model, signature)
    rows = table.select(signature.columns).rows()
    scores = runners.scores(runner, bind(signature, rows))
    if signature.task == "classification":
        truth = answers.class_indices(table.column(label), signature.classes).astype(np.float64)
        right = (scores.argmax(axis=1) == truth).astype(np.float64)
        return signature.task, float(right.mean()), right
    values = table.numbers(label)
    spread = float(((values - values.mean()) ** 2).mean()) or 1.0
    lost = 1 - (values - scores[:, 0]) ** 2 / spread
    return signature.task, float(lost.mean()), lost
