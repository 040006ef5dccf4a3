"""What a variant may cost and may lose, for all boards or for one. Values and their file.

A budget file is YAML; what stands under `boards` replaces the general value for that board:

    max_drop: 0.005
    max_bytes: 100000
    boards:
      rpi-zero2w: {max_bytes: 50000, max_latency_us: 2000}

Rules:

1. A budget of 0 is none, as in a manifest.
2. An unknown name or a value out of its limits is refused: a misspelt budget would be no budget.
3. Whether a drop is within its budget is decided by its interval (`verification.evidence`,
   docs/adr/0017-budget-rule.md).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.verification import evidence

Count = Annotated[int, Meta(ge=0)]
# A budget file holds a dozen numbers.
MAX_FILE_BYTES = 64 * 1024


class Budgets(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits on one variant on one board.

    Attributes:
        max_bytes: of the model file.
        max_transfer_bytes: of the model file as it is sent, compressed.
        max_latency_us: median of one row.
        max_memory_bytes: resident memory added by loading and running it, at its peak.
        max_drop: of the metric below the original model's, absolute: 0.005 is half a point.
        evidence: `proven` lets a variant pass if the upper end of the drop's interval is within
            `max_drop`; `not-refuted` also if the estimate is, and the lower end is not over.
        prefer: what decides between variants that are all within their budgets.
    """

    max_bytes: Count = 0
    max_transfer_bytes: Count = 0
    max_latency_us: Count = 0
    max_memory_bytes: Count = 0
    max_drop: Annotated[float, Meta(ge=0, lt=1)] = 0.01
    evidence: Literal["proven", "not-refuted"] = "proven"
    prefer: Literal["size", "latency"] = "size"


class BudgetPlan(Struct, frozen=True):
    """Budgets for all boards.

    Attributes:
        general: where a board has none of its own.
        boards: board → its budgets, whole.
        confidence: of all intervals.
    """

    general: Budgets = field(default_factory=Budgets)
    boards: dict[str, Budgets] = field(default_factory=dict)
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95

    def of(self, board: str) -> Budgets:
        """Return the budgets for a board."""
        return self.boards.get(board, self.general)


def plan(values: dict[str, Any], given: dict[str, Any], what: str = "budgets") -> BudgetPlan:
    """Check budgets out of a file and the command line.

    Args:
        values: as read from a file.
        given: on the command line; replaces the general values of the file, not those of a board.
        what: source of the values, for error texts.

    Raises:
        BadInputError: an unknown name, or a value out of its limits.
    """
    general = values | given
    boards = general.pop("boards", None) or {}
    confidence = general.pop("confidence", evidence.CONFIDENCE)
    if not isinstance(boards, dict) or not all(isinstance(v, dict) for v in boards.values()):
        raise BadInputError(f"{what}: expected `boards` to map names of boards to their budgets")
    checked = {name: _checked(general | own, f"{what}: {name}") for name, own in boards.items()}
    try:
        return msgspec.convert(
            {"general": _checked(general, what), "boards": checked, "confidence": confidence},
            BudgetPlan,
        )
    except msgspec.ValidationError as error:
        raise BadInputError(f"{what}: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Return the values of a budget file, for `plan`.

    Raises:
        BadInputError: it cannot be read, or is no YAML map.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadInputError(f"{path}: more than {MAX_FILE_BYTES} bytes is no budget file")
    try:
        values = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"{path}: no YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInputError(f"{path}: expected a map of budgets, not a {type(values).__name__}")
    return values


def _checked(values: dict[str, Any], what: str) -> Budgets:
    try:
        return msgspec.convert(values, Budgets)
    except msgspec.ValidationError as error:
        known = ", ".join(Budgets.__struct_fields__)
        raise BadInputError(f"{what}: {error}; budgets are: {known}, confidence, boards") from error
