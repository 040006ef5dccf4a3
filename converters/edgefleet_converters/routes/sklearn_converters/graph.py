"""A small language in which converters of our own write their part of an ONNX graph.

skl2onnx walks pipelines and calls one converter for each estimator. A converter here is a function
`(graph, estimator, X) -> name of the result`, registered by what its estimator is:

1. `transforms`: the result is `(n, width)`, the transformed rows.
2. `regresses`: the result is `(n, n_targets)`, the predicted values.
3. `classifies`: the result is `(n, n_classes)`, probabilities or decision values; the label is the
   class of the greatest, the first of equals, as numpy's argmax has it.
4. `classifies_several`: the result is a pair of `(n, n_labels)`, labels and scores of several
   answers for one row.
5. `detects`: the result is `(n, 1)`, the decision value; the label is -1 below zero, else 1.

Numbers of a graph are all float32 or all float64, as its input is; constants follow. A part that
needs float64 in any case is written with `Graph.wide` and cast back.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

# Name of the result. A classifier whose label is not that of its greatest score adds the name of
# values `(n, n_classes)` of which it is; one with several labels begins with these.
Result = str | tuple[str, str]
Convert = Callable[["Graph", Any, str], Result]
AnyConvert = TypeVar("AnyConvert", bound=Convert)
_ML = "ai.onnx.ml"


class Decorator(Protocol):
    """Registers a converter and gives it back."""

    def __call__(self, convert: AnyConvert) -> AnyConvert:
        """Register `convert`."""


class Graph:
    """The part of a graph that one estimator becomes.

    Attributes:
        dtype: of all its numbers, float32 or float64.
    """

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        from skl2onnx.common.data_types import DoubleTensorType

        self._scope, self._operator, self._container = scope, operator, container
        double = any(isinstance(given.type, DoubleTensorType) for given in operator.inputs)
        self.dtype = np.dtype(np.float64 if double else np.float32)

    def wide(self) -> "Graph":
        """Return this graph with numbers of float64, for a part for which float32 is too coarse."""
        other = copy.copy(self)
        other.dtype = np.dtype(np.float64)
        return other

    def op(self, kind: str, *inputs: str | ArrayLike, **attributes: Any) -> str:
        """Add a node with one output and return the output's name.

        Args:
            kind: operator of the standard domain.
            inputs: names of values, or constants.
            attributes: of the node.
        """
        return self._node("", kind, inputs, attributes)

    def ml(self, kind: str, *inputs: str | ArrayLike, **attributes: Any) -> str:
        """Add a node of the domain ai.onnx.ml and return its output's name."""
        return self._node(_ML, kind, inputs, attributes)

    def constant(self, values: ArrayLike) -> str:
        """Add a constant: floats in the type of the graph, integers as int64, text and bool."""
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        elif array.dtype.kind in "iu":
            array = array.astype(np.int64)
        if array.dtype.kind not in "UO":
            return self._tensor(array)
        name: str = self._scope.get_unique_variable_name("constant")
        kind, shape = onnx.TensorProto.STRING, list(array.shape)
        self._container.add_initializer(name, kind, shape, [str(v) for v in array.ravel()])
        return name

    def single(self, values: ArrayLike) -> str:
        """Add a constant of float32, whatever the numbers of the graph are."""
        return self._tensor(np.asarray(values, np.float32))

    def cast(self, value: str, dtype: Any = None) -> str:
        """Return a value as numbers of the graph, or in `dtype`."""
        wanted = np.dtype(self.dtype if dtype is None else dtype)
        return self.op("Cast", value, to=onnx.helper.np_dtype_to_tensor_dtype(wanted))

    def columns(self, value: str, index: ArrayLike) -> str:
        """Return some columns of `(n, width)`, in this order."""
        return self.op("Gather", value, np.asarray(index, np.int64), axis=1)

    def concat(self, values: list[str]) -> str:
        """Return columns side by side."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=1)

    def affine(self, value: str, weights: ArrayLike, offset: ArrayLike) -> str:
        """Return `value @ weights + offset`, with `weights` of `(width, n_outputs)`."""
        return self.op("Add", self.op("MatMul", value, weights), offset)

    def reduce(self, kind: str, value: str, axis: int = 1, keepdims: int = 1) -> str:
        """Return `ReduceSum`, `ReduceMax`, … along one axis."""
        return self.op(kind, value, np.array([axis]), keepdims=keepdims)

    def top(self, value: str, count: int) -> tuple[str, str]:
        """Return the least values of each row and their columns, `(n, count)`."""
        names = [self._scope.get_unique_variable_name(kind) for kind in ("least", "index")]
        self._container.add_node(
            "TopK",
            [value, self.constant(np.array([count]))],
            names,
            name=self._scope.get_unique_operator_name("TopK"),
            axis=1,
            largest=0,
        )
        return names[0], names[1]

    def apply(self, estimator: Any, value: str, width: int | None = None) -> list[str]:
        """Let the converter of another fitted estimator work on a value.

        Args:
            estimator: that a converter is registered for.
            value: `(n, width)`.
            width: columns of the value, where the converter of the estimator asks.

        Returns:
            Its outputs: label and scores of a classifier or outlier detector, else one.
        """
        from skl2onnx._parse import _parse_sklearn

        given = self._scope.declare_local_variable("given", self._type(width))
        self._container.add_node("Identity", [value], [given.onnx_name])
        outputs = _parse_sklearn(self._scope, estimator, [given])
        return [variable.onnx_name for variable in outputs]

    def scores(self, estimator: Any, value: str, width: int, *, raw: bool = True) -> str:
        """Return `(n, n_classes)` decision values of a fitted classifier, else probabilities.

        For two classes the second column holds what `decision_function` or `predict_proba` says of
        the positive class; of a regressor, both hold its value. Without `raw`, probabilities.
        """
        raw = raw and hasattr(estimator, "decision_function")
        outputs = self._classified(estimator, value, width, raw=raw)
        if len(outputs) > 1:
            return outputs[-1]
        flat = self.op("Reshape", outputs[0], np.array([-1, 1]))
        return self.concat([flat, flat])

    def label(self, estimator: Any, value: str, width: int) -> str:
        """Return `(n,)` labels of a fitted classifier."""
        return self.answer(estimator, value, width, raw=False)[0]

    def answer(self, estimator: Any, value: str, width: int, *, raw: bool) -> tuple[str, str]:
        """Return `(n,)` labels and `(n, n_classes)` probabilities of a fitted classifier.

        With `raw`, decision values in place of probabilities.
        """
        outputs = self._classified(estimator, value, width, raw=raw)
        return self.op("Reshape", outputs[0], np.array([-1])), outputs[-1]

    def _classified(self, estimator: Any, value: str, width: int, *, raw: bool) -> list[str]:
        final = estimator
        while hasattr(final, "steps"):
            final = final.steps[-1][1]
        self._scope.add_options(id(final), score_options(estimator, final, raw=raw))
        return self.apply(estimator, value, width)

    def _tensor(self, array: NDArray[Any]) -> str:
        name: str = self._scope.get_unique_variable_name("constant")
        # Not `ascontiguousarray`, which makes a row of a number.
        tensor = onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        self._container.add_initializer(name, tensor.data_type, list(array.shape), tensor)
        return name

    def _type(self, width: int | None) -> Any:
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

        kind = DoubleTensorType if self.dtype == np.float64 else FloatTensorType
        return kind([None, width])

    def _node(
        self,
        domain: str,
        kind: str,
        inputs: tuple[str | ArrayLike, ...],
        attributes: dict[str, Any],
    ) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output: str = self._scope.get_unique_variable_name(kind.lower())
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, names, [output], op_domain=domain, name=name, **attributes)
        return output


def score_options(estimator: Any, final: Any, *, raw: bool | None = None) -> dict[str, bool]:
    """Return skl2onnx's options for scores as a tensor, and decision values where there are any.

    Args:
        estimator: of which a graph is made.
        final: the estimator at its end, whose options they are.
        raw: whether decision values are wanted; None where there are no probabilities.
    """
    from skl2onnx import get_model_alias
    from skl2onnx.common._registration import get_converter

    wanted = {"zipmap": False}
    if not hasattr(estimator, "predict_proba") if raw is None else raw:
        wanted["raw_scores"] = True
    try:
        allowed = get_converter(get_model_alias(type(final))).get_allowed_options() or {}
    except (RuntimeError, ValueError):
        return {}  # there is no converter; the conversion itself says so
    return {name: value for name, value in wanted.items() if name in allowed}


def transforms(
    *kinds: type,
    width: Callable[[Any], int | None] | None = None,
    only: Callable[[Any], bool] | None = None,
) -> Decorator:
    """Register a converter of transformers.

    Args:
        kinds: estimator classes.
        width: of the result, from the fitted estimator; by default the number of its names.
        only: which estimators; skl2onnx converts the others. None for all.
    """
    return _register(
        kinds, lambda model: [(width or _named_width)(model)], _write_values, only=only
    )


def regresses(*kinds: type) -> Decorator:
    """Register a converter of regressors."""
    return _register(kinds, lambda _: [1], _write_values)


def classifies(*kinds: type) -> Decorator:
    """Register a converter of classifiers with one label."""
    options = {"zipmap": [False, True], "raw_scores": [False, True]}
    return _register(kinds, lambda model: [1, len(model.classes_)], _write_classes, options)


def classifies_several(*kinds: type) -> Decorator:
    """Register a converter of classifiers with several labels."""
    options = {"zipmap": [False, True], "raw_scores": [False, True]}

    def widths(model: Any) -> list[int | None]:
        return [len(model.classes_), len(model.classes_)]

    return _register(kinds, widths, _write_several, options)


def detects(*kinds: type) -> Decorator:
    """Register a converter of outlier detectors."""
    # The parser of skl2onnx asks for this option.
    options = {"score_samples": [False]}
    return _register(kinds, lambda _: [1, 1], _write_outliers, options)


def _named_width(model: Any) -> int | None:
    try:
        return len(model.get_feature_names_out())
    except (AttributeError, ValueError):
        return getattr(model, "n_components", None)


def _register(
    kinds: tuple[type, ...],
    widths: Callable[[Any], list[int | None]],
    write: Callable[[Graph, Any, Any, list[str]], None],
    options: dict[str, Any] | None = None,
    only: Callable[[Any], bool] | None = None,
) -> Decorator:
    def shape(operator: Any) -> None:
        _declare(operator, widths(operator.raw_operator))

    def decorate(convert: AnyConvert) -> AnyConvert:
        from skl2onnx import update_registered_converter
        from skl2onnx._parse import update_registered_parser
        from skl2onnx.common._registration import register_converter, register_shape_calculator

        def call(scope: Any, operator: Any, container: Any) -> None:
            graph = Graph(scope, operator, container)
            result = convert(graph, operator.raw_operator, _numbers(graph, operator))
            write(graph, operator.raw_operator, result, [o.onnx_name for o in operator.outputs])

        for kind in kinds:
            alias = f"Edgefleet{kind.__name__}"
            if only is None:
                update_registered_converter(
                    kind, alias, shape, call, overwrite=True, options=options
                )
            else:
                register_converter(alias, call, overwrite=True)
                register_shape_calculator(alias, shape, overwrite=True)
            if write is _write_values:
                update_registered_parser(kind, _parser(alias, only))
        return convert

    return decorate


def _parser(alias: str, only: Callable[[Any], bool] | None) -> Callable[..., Any]:
    """Return a parser that gives an estimator one output; skl2onnx gives clusterers two."""

    def parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        from skl2onnx._parse import _parse_sklearn_simple_model
        from skl2onnx.common.data_types import guess_tensor_type

        if only is not None and not only(model):
            return _parse_sklearn_simple_model(scope, model, inputs, custom_parsers)
        operator = scope.declare_local_operator(alias, model)
        operator.inputs = inputs
        given = next((i.type for i in inputs if _is_float(i.type)), inputs[0].type)
        output = scope.declare_local_variable("variable", guess_tensor_type(given))
        operator.outputs.append(output)
        return operator.outputs

    return parse


def _is_float(kind: Any) -> bool:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    return isinstance(kind, DoubleTensorType | FloatTensorType)


def _numbers(graph: Graph, operator: Any) -> str:
    """Return all inputs of an operator as one `(n, width)` of numbers, or one of text."""
    from skl2onnx.common.data_types import StringTensorType, guess_tensor_type

    parts = []
    for given in operator.inputs:
        text = isinstance(given.type, StringTensorType)
        same = isinstance(given.type, type(guess_tensor_type(graph._type(None))))
        parts.append(given.onnx_name if text or same else graph.cast(given.onnx_name))
    return graph.concat(parts)


def _declare(operator: Any, widths: list[int | None]) -> None:
    """Give the outputs of an operator their types: the last holds numbers, a first one labels."""
    from skl2onnx.common.data_types import (
        DoubleTensorType,
        FloatTensorType,
        Int64TensorType,
        StringTensorType,
    )

    double = any(isinstance(given.type, DoubleTensorType) for given in operator.inputs)
    numbers = DoubleTensorType if double else FloatTensorType
    operator.outputs[-1].type = numbers([None, widths[-1]])
    if len(widths) > 1:
        classes = np.hstack(getattr(operator.raw_operator, "classes_", [0]))
        label = StringTensorType if classes.dtype.kind in "UO" else Int64TensorType
        operator.outputs[0].type = label([None] if widths[0] == 1 else [None, widths[0]])


def _write_values(graph: Graph, model: Any, result: str, outputs: list[str]) -> None:
    del model
    graph._container.add_node("Identity", [result], outputs)


def _write_classes(graph: Graph, model: Any, result: Result, outputs: list[str]) -> None:
    scores, ranking = result if isinstance(result, tuple) else (result, result)
    classes: NDArray[Any] = np.asarray(model.classes_)
    if classes.dtype.kind in "fb":
        classes = classes.astype(np.int64)
    best = graph.op("ArgMax", ranking, axis=1, keepdims=0)
    label = graph.op("Gather", classes, best, axis=0)
    graph._container.add_node("Identity", [label], outputs[:1])
    graph._container.add_node("Identity", [scores], outputs[1:])


def _write_several(graph: Graph, model: Any, result: tuple[str, str], outputs: list[str]) -> None:
    del model
    for value, output in zip(result, outputs, strict=True):
        graph._container.add_node("Identity", [value], [output])


def _write_outliers(graph: Graph, model: Any, result: str, outputs: list[str]) -> None:
    del model
    flat = graph.op("Reshape", result, np.array([-1]))
    outside = graph.op("Less", flat, np.array(0.0))
    label = graph.op("Where", outside, np.array(-1), np.array(1))
    graph._container.add_node("Identity", [label], outputs[:1])
    graph._container.add_node("Identity", [result], outputs[1:])
