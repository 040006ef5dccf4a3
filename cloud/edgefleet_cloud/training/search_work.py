"""What a search does in its own process: find the best variants, and keep them and the report."""

from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_cloud.errors import HubError
from edgefleet_cloud.jobs.worker import Context
from edgefleet_cloud.registry.registration import store_result
from edgefleet_cloud.training import boards
from edgefleet_cloud.training.boards import Board
from edgefleet_cloud.training.work import CODE, Chosen, Result, as_json, environment, placed
from edgefleet_cloud.values import Json
from edgefleet_converters.conversion import ConversionRequest, ConversionResult
from edgefleet_converters.searching import budgets, report, space, study
from edgefleet_converters.searching.found import Found
from edgefleet_converters.searching.study import Searched, SearchRequest
from edgefleet_protocol.manifest import Lineage


class SearchArguments(Struct, forbid_unknown_fields=True):
    """Arguments of `search`.

    Attributes:
        of: the version whose fitted model this is.
        artifact: digest of that model; `filename` says what it is.
        sample: digest of the dataset of training rows; `holdout` of the rows to judge on, None to
            hold out some of the sample.
        boards: to aim at.
        budgets: as `searching.budgets.plan` reads them.
        trials: most points of the built-in spaces.
    """

    run_id: int
    model: str
    version: str
    of: str
    artifact: str
    filename: str
    sample: str
    holdout: str | None
    label: str | None
    classes: list[str] | None
    seed: int
    boards: list[Board]
    budgets: Json
    variants: list[str] | None
    trials: int


def search(context: Context, **arguments: Any) -> Json:
    """Search for the best variant for each board, and register those."""
    given = msgspec.convert(arguments, SearchArguments)
    searched = study.search(_request(context, given), context.progress)
    found = searched.found
    if all(choice.chosen is None for choice in found.choices):
        reasons = "; ".join(f"{choice.board}: {choice.reason}" for choice in found.choices)
        raise HubError(f"no board gets a variant: {reasons}")
    lineage = Lineage(given.sample, str(given.run_id), "search", CODE, {"of": given.of})
    result = _result(searched)
    registration = store_result(
        context.store, result, model=given.model, version=given.version, lineage=lineage
    )
    texts = report.texts(found)
    return as_json(
        Result(
            given.run_id,
            given.artifact,
            result.metrics,
            environment(),
            registration,
            found.seconds,
            filename=given.filename,
            classes=given.classes,
            choices=[
                Chosen(choice.board, choice.title, choice.chosen, choice.reason, choice.notes)
                for choice in found.choices
            ],
            reports={form: context.store.put(text.encode()) for form, text in texts.items()},
        )
    )


def _request(context: Context, given: SearchArguments) -> SearchRequest:
    holdout = given.holdout
    conversion = ConversionRequest(
        str(placed(context, given.artifact, given.filename)),
        str(placed(context, given.sample, f"dataset-{given.sample[:12]}")),
        given.label,
        None if holdout is None else str(placed(context, holdout, f"holdout-{holdout[:12]}")),
        given.variants,
        given.classes,
        seed=given.seed,
    )
    return SearchRequest(
        conversion,
        given.model,
        given.version,
        boards.checked(given.boards),
        budgets.plan(given.budgets, {}),
        list(space.builtin().values()),
        given.trials,
        [],
        str(context.folder / "search"),
    )


def _result(searched: Searched) -> ConversionResult:
    """Return the chosen variants as a conversion that made only them."""
    compiled = report.chosen(searched)
    signature = compiled[0].signature
    assert signature is not None  # they were verified
    found = searched.found
    return ConversionResult(
        found.task,
        signature.columns,
        signature.classes,
        searched.reference,
        _metrics(found),
        compiled,
        found.seconds,
    )


def _metrics(found: Found) -> dict[str, float]:
    if not found.labelled:
        return {}
    return {found.metric: found.original_score, "rows": float(found.rows)}
