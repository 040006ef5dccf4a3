"""What the jobs that make versions do in their own process.

Training and conversion are one job: a fitted model that no device can run is of no use. Nothing
here touches the database; `outcome` takes the result in.
"""

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from edgefleet_cloud import __version__
from edgefleet_cloud.datasets import content
from edgefleet_cloud.jobs.kinds import load
from edgefleet_cloud.jobs.worker import Context
from edgefleet_cloud.registry import handed_in
from edgefleet_cloud.registry.registration import Registration, store_result
from edgefleet_cloud.training.comparison import Comparison, compare
from edgefleet_cloud.training.service import BoundRecipe
from edgefleet_cloud.training.trainers import TRAINERS
from edgefleet_cloud.values import Json
from edgefleet_converters import bundle_archive
from edgefleet_converters.conversion import VARIANTS, DeviceBudget
from edgefleet_converters.pipeline import ConversionRequest, ConversionResult
from edgefleet_converters.pipeline import convert as run_conversion
from edgefleet_converters.recipes import recipe
from edgefleet_protocol.manifest import Lineage

CODE = f"edgefleet-cloud {__version__}"
# Share of the job's progress that belongs to training; measured on the digits CNN.
_TRAINING_SHARE = 0.4


class ConvertArguments(Struct, forbid_unknown_fields=True):
    """Arguments of `convert_and_register`.

    Attributes:
        artifact: digest of the model file; `filename` says what it is.
        sample: digest of the dataset of training rows.
        ship: `training.service.Shipment` as JSON; used when the job is finished.
    """

    run_id: int
    model: str
    version: str
    artifact: str
    filename: str
    sample: str
    label: str | None
    variants: list[str] | None
    seed: int
    ship: Json | None = None
    budget: DeviceBudget = field(default_factory=DeviceBudget)


class HandedInArguments(Struct, forbid_unknown_fields=True):
    """Arguments of `register_bundles`.

    Attributes:
        archive: digest of the archive of bundles.
        ship: `training.service.Shipment` as JSON; used when the job is finished.
    """

    run_id: int
    model: str
    version: str
    archive: str
    ship: Json | None = None


class TrainArguments(Struct, forbid_unknown_fields=True):
    """Arguments of `train` and `retrain`.

    Attributes:
        dataset, holdout: digests; disjoint rows.
        guard: digest of further rows to compare on, None for none.
        recipes: to make instead of `variants`, if there are any.
        champion: version and manifests (variant → digest) to compare with, None for no comparison.
    """

    run_id: int
    model: str
    version: str
    trainer: str
    parameters: Json
    dataset: str
    holdout: str
    label: str
    variants: list[str] | None
    seed: int
    recipes: list[BoundRecipe] = field(default_factory=list)
    guard: str | None = None
    champion: Json | None = None
    budget: DeviceBudget = field(default_factory=DeviceBudget)


class Chosen(Struct, frozen=True):
    """What a search found for a board; see `edgefleet_converters.searching.choice.Choice`."""

    board: str
    title: str
    chosen: str | None
    reason: str
    notes: list[str]


class Result(Struct):
    """What a job hands back.

    Attributes:
        artifact: digest of the fitted model file.
        filename: what that is called, empty for bundles; `classes` as in `database.models.Run`.
        metrics: on held-out rows, and figures of the training.
        environment: package → version that trained.
        phases_s: phase → seconds.
        comparison: with the champion on the same held-out rows, if asked for.
        guard: likewise on the guard's rows.
        choices: of a search.
        reports: of a search: html | md | json → digest.
    """

    run_id: int
    artifact: str
    metrics: dict[str, float]
    environment: dict[str, str]
    registration: Registration
    phases_s: dict[str, float]
    filename: str = ""
    classes: list[str] | None = None
    comparison: Comparison | None = None
    guard: Comparison | None = None
    choices: list[Chosen] = field(default_factory=list)
    reports: dict[str, str] = field(default_factory=dict)


def convert(context: Context, **arguments: Any) -> Json:
    """Convert and verify a model that was handed in."""
    given = msgspec.convert(arguments, ConvertArguments)
    path = placed(context, given.artifact, given.filename)
    lineage = Lineage(given.sample, str(given.run_id), "import", CODE)
    request = ConversionRequest(
        model_path=str(path),
        sample_path=str(placed(context, given.sample, f"dataset-{given.sample[:12]}")),
        label=given.label,
        variants=given.variants,
        budget=given.budget,
        seed=given.seed,
    )
    result = run_conversion(request, context.progress)
    registration = store_result(
        context.store, result, model=given.model, version=given.version, lineage=lineage
    )
    answer = Result(
        given.run_id,
        given.artifact,
        result.metrics,
        environment(),
        registration,
        result.phases_s,
        filename=given.filename,
    )
    return as_json(answer)


def take_bundles(context: Context, **arguments: Any) -> Json:
    """Verify bundles that were made elsewhere, and keep them."""
    given = msgspec.convert(arguments, HandedInArguments)
    folders = bundle_archive.unpack(context.store.path(given.archive), context.folder)
    registration = handed_in.take_in(
        context.store, folders, model=given.model, version=given.version, run_id=given.run_id
    )
    return as_json(Result(given.run_id, given.archive, {}, environment(), registration, {}))


def train(context: Context, **arguments: Any) -> Json:
    """Train a model, convert it, and compare it with the champion if asked to."""
    given = msgspec.convert(arguments, TrainArguments)
    table = content.read(context.store, given.dataset)

    def training(fraction: float, step: str) -> None:
        context.progress(_TRAINING_SHARE * fraction, step)

    def converting(fraction: float, step: str) -> None:
        context.progress(_TRAINING_SHARE + (1 - _TRAINING_SHARE) * fraction, step)

    fit = load(TRAINERS[given.trainer].fit)
    fitted = fit(table, given.label, given.parameters, given.seed, context.folder, training)
    result = _convert_fitted(context, given, fitted.path, fitted.classes, converting)
    lineage = Lineage(
        given.dataset, str(given.run_id), given.trainer, CODE, _flat(given.parameters)
    )
    registration = store_result(
        context.store, result, model=given.model, version=given.version, lineage=lineage
    )
    answer = Result(
        given.run_id,
        context.store.put_file(fitted.path),
        {**fitted.facts, **result.metrics},
        environment(),
        registration,
        result.phases_s,
        filename=fitted.path.name,
        classes=fitted.classes,
    )
    if given.champion is not None:
        answer.comparison = compare(
            context.store, given.champion, registration, given.holdout, given.label
        )
    if given.champion is not None and given.guard is not None:
        answer.guard = compare(
            context.store, given.champion, registration, given.guard, given.label
        )
    return as_json(answer)


def _convert_fitted(
    context: Context,
    given: TrainArguments,
    path: Path,
    classes: list[str] | None,
    progress: Any,
) -> ConversionResult:
    wanted = [(recipe.parse(item.recipe, "recipe"), item.boards) for item in given.recipes]
    known = [item.name for item, _ in wanted if item.name in VARIANTS]
    request = ConversionRequest(
        model_path=str(path),
        sample_path=str(placed(context, given.dataset, f"dataset-{given.dataset[:12]}")),
        label=given.label,
        holdout_path=str(placed(context, given.holdout, f"holdout-{given.holdout[:12]}")),
        variants=known if wanted else given.variants,
        budget=given.budget,
        classes=classes,
        seed=given.seed,
        recipes=[item for item, _ in wanted if item.name not in VARIANTS],
    )
    return _bound(run_conversion(request, progress), {item.name: to for item, to in wanted})


def _bound(result: ConversionResult, boards: dict[str, list[str]]) -> ConversionResult:
    """Return a conversion with its variants bound to boards, by their names."""
    compiled = [
        item
        if item.needs is None
        else replace(item, needs=replace(item.needs, boards=boards.get(item.name, [])))
        for item in result.compiled
    ]
    return replace(result, compiled=compiled)


def placed(context: Context, digest: str, name: str) -> Path:
    """Return a path in the scratch folder to a stored file, under a name fit for errors."""
    path = context.folder / name
    path.symlink_to(context.store.path(digest))
    return path


def environment() -> dict[str, str]:
    """Return the versions of Python and of the packages loaded in this process that decide."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    packages = {
        "numpy": "numpy", "sklearn": "scikit-learn", "skl2onnx": "skl2onnx", "keras": "keras",
        "tensorflow": "tensorflow", "onnx": "onnx", "onnxruntime": "onnxruntime",
    }  # fmt: skip
    for module, package in packages.items():
        loaded = sys.modules.get(module)
        if loaded is not None:
            version = getattr(loaded, "__version__", None)
            found[package] = str(version or metadata.version(package))
    return found


def _flat(parameters: Json) -> dict[str, int | float | str | bool | None]:
    """Return parameters as a manifest holds them: lists and mappings as JSON text."""
    return {
        name: value
        if value is None or isinstance(value, int | float | str)
        else msgspec.json.encode(value).decode()
        for name, value in parameters.items()
    }


def as_json(answer: Result) -> Json:
    """Return the answer as the job's process hands it back."""
    data: Json = msgspec.to_builtins(answer)
    return data
