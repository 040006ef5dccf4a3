"""The table of scikit-learn for the terminal and for the page."""

from collections.abc import Sequence

from rich.table import Table

from tests.coverage import sklearn, sklearn_cases
from tests.coverage.report import Report
from tests.coverage.sklearn import Result


def run(names: Sequence[str] = ()) -> Report:
    """Check all estimators, or those named."""
    results = sklearn.run(names)
    right = all(result.state == "right" for result in results)
    return Report(_table(results), _sentence(results), _section(results), right)


def _table(results: list[Result]) -> Table:
    table = Table(title="scikit-learn → ONNX", title_justify="left")
    for column in ("kind", "estimator", "case", "state", "input", "largest difference", "why"):
        table.add_column(column)
    for result in results:
        gap = "" if result.gap is None else f"{result.gap:.0e}"
        table.add_row(
            result.kind,
            result.name,
            result.note,
            result.state,
            result.dtype,
            gap,
            result.detail[:200],
        )
    return table


def _sentence(results: list[Result]) -> str:
    right, total = sklearn.share(results)
    return (
        f"{right} of {total} estimators are right in all {len(results)} cases ({right / total:.1%})"
    )


def _section(results: list[Result]) -> str:
    lines = [f"**{_sentence(results)}.**", "", "| kind | right | of |", "|---|---|---|"]
    for kind in sklearn_cases.KINDS:
        right, total = sklearn.share([result for result in results if result.kind == kind])
        lines.append(f"| {kind} | {right} | {total} |")
    lines += _wrong_rows(results)
    lines += ["", "Not counted, because no fixed graph over a row can stand for it:", ""]
    lines += ["| estimator | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in sorted(sklearn.CANNOT.items())]
    lines += ["", "Right in all cases, with the largest difference from scikit-learn:", ""]
    lines += ["| kind | estimator | cases | input | difference |", "|---|---|---|---|---|"]
    return "\n".join(lines + _right_rows(results)) + "\n"


def _wrong_rows(results: list[Result]) -> list[str]:
    wrong = [result for result in results if result.state != "right"]
    if not wrong:
        return ["", "No case is wrong or refused."]
    rows = ["", "Not right, of what could be expressed:", "", "| estimator | case | why |"]
    rows.append("|---|---|---|")
    for result in wrong:
        why = result.detail.replace("|", "/").replace("\n", " ")[:200]
        rows.append(f"| {result.name} | {result.note or 'default'} | {result.state}: {why} |")
    return rows


def _right_rows(results: list[Result]) -> list[str]:
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    rows = []
    for name, found in by_name.items():
        if any(result.state != "right" for result in found):
            continue
        notes = ", ".join(result.note or "default" for result in found)
        kinds = "/".join(sorted({result.dtype for result in found}))
        gap = max(result.gap or 0.0 for result in found)
        rows.append(f"| {found[0].kind} | {name} | {notes} | {kinds} | {gap:.0e} |")
    return rows
