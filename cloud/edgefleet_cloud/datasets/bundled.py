"""The data sets that scikit-learn brings along, so that a first model needs no data of one's own.

scikit-learn is imported in a child process only: the hub itself stays small.
"""

from edgefleet_cloud.errors import InvalidError
from edgefleet_converters import child
from edgefleet_converters.tables import Column, Table

# Name → what it holds.
BUNDLED = {
    "digits": "1,797 handwritten digits of 8 x 8 pixels, ten classes",
    "iris": "150 flowers, four measures, three classes",
    "wine": "178 wines, thirteen measures, three classes",
    "breast_cancer": "569 tumours, thirty measures, two classes",
    "diabetes": "442 patients, ten measures, disease progression after a year (a number)",
}
LABEL = "target"


def load(name: str) -> Table:
    """Return a bundled data set with its label in the column `target`.

    Class labels are names where the set has names, else numbers.

    Raises:
        InvalidError: if there is none of that name.
    """
    if name not in BUNDLED:
        raise InvalidError(
            f"{name!r} is no bundled data set; expected one of {', '.join(sorted(BUNDLED))}"
        )
    columns = child.run(f"loading {name}", _columns, name, returns=dict[str, list[float | str]])
    return Table(name, {key: _column(cells) for key, cells in columns.items()})


def _columns(name: str) -> dict[str, list[float | str]]:
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")(as_frame=True)
    columns = {str(key): data.data[key].astype(float).tolist() for key in data.data}
    names = [str(item) for item in getattr(data, "target_names", [])]
    if names and not all(item.isdigit() for item in names) and len(names) == data.target.nunique():
        columns[LABEL] = [names[int(value)] for value in data.target]
    else:
        columns[LABEL] = data.target.astype(float).tolist()
    return columns


def _column(cells: list[float | str]) -> Column:
    import numpy as np

    if all(isinstance(cell, float | int) for cell in cells):
        return np.array(cells, np.float64)
    return np.array(cells, object)
