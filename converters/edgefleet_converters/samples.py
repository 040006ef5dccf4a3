"""Samples: rows or tensors, in the form in which they came, bound to whatever a model file asks.

Files made from one model name their inputs differently (`X`, `serving_default_x:0`), but keep their
order. So feature rows are bound by the columns of the signature, and tensors by position.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.rows import Tensors, bind


@dataclass(frozen=True)
class Samples:
    """What a model is run on: feature rows, or tensors with the rows first.

    Attributes:
        source: where they came from, for error texts.
        table: feature rows without the label; None for tensors.
        tensors: input name → `(n, …)`, in the order of the original model's inputs; empty for rows.
    """

    source: str
    table: Table | None
    tensors: Tensors

    def __len__(self) -> int:
        if self.table is not None:
            return len(self.table)
        return len(next(iter(self.tensors.values()), ()))

    def take(self, index: NDArray[np.int64] | slice) -> "Samples":
        """Return the samples at `index`."""
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return Samples(
            self.source,
            None if self.table is None else self.table.take(index),
            {name: values[index] for name, values in self.tensors.items()},
        )

    def below(self, other: "Samples") -> "Samples":
        """Return these samples and then those of `other`, which has all their columns or tensors.

        Raises:
            BadInputError: if it has not, or of another shape.
        """
        source = f"{self.source} and {other.source}"
        if self.table is not None and other.table is not None:
            return Samples(source, self.table.below(other.table), {})
        shapes = {name: values.shape[1:] for name, values in self.tensors.items()}
        others = {name: values.shape[1:] for name, values in other.tensors.items()}
        if shapes != others or not shapes:
            raise BadInputError(
                f"{other.source}: has the arrays {others or 'of a table'};"
                f" {self.source} has {shapes or 'a table'}"
            )
        tensors = {n: np.concatenate([v, other.tensors[n]]) for n, v in self.tensors.items()}
        return Samples(source, None, tensors)

    def bind(self, signature: Signature) -> Tensors:
        """Return the input tensors of a model, by its own names, in its dtypes.

        Raises:
            BadInputError: if the samples do not fit the inputs.
        """
        if self.table is not None:
            return bind(signature, self.table.select(signature.columns).rows())
        if len(self.tensors) != len(signature.inputs):
            raise BadInputError(
                f"{self.source}: {len(self.tensors)} tensors ({', '.join(self.tensors)}) for a"
                f" model of {len(signature.inputs)} inputs"
            )
        bound: Tensors = {}
        for (name, values), tensor in zip(self.tensors.items(), signature.inputs, strict=True):
            sizes = tensor.shape[1:] if tensor.shape else []
            if list(values.shape[1:]) != sizes:
                raise BadInputError(
                    f"{self.source}: {name!r} has rows of the shape {list(values.shape[1:])};"
                    f" the input {tensor.name!r} takes {sizes}"
                )
            bound[tensor.name] = np.ascontiguousarray(values, np.dtype(tensor.dtype))
        return bound
