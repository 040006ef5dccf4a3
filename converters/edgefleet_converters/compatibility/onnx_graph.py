"""Look at an ONNX file without running it. Runs in a child process: the file may be hostile.

1. Parse; whatever protobuf refuses is unreadable.
2. Constants: declared sizes against the bytes that are there, external data against the folder.
   Large constants are dropped then, so that nothing after this step is slow or copies them.
3. Inline the model's own functions; infer types and shapes.
4. Walk all graphs, bodies of If, Loop and Scan too: wiring, arguments, attributes, types, loops
   that cannot end, memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from msgspec import Struct, structs
from onnx import inliner, shape_inference

from edgefleet_converters.compatibility import onnx_bodies, onnx_check, onnx_types
from edgefleet_converters.compatibility.facts import Facts, OnnxFacts, Use
from edgefleet_converters.compatibility.liveness import Step, peak_bytes
from edgefleet_converters.compatibility.onnx_types import Types

# Constants up to this size stay, because shapes are computed from them.
_KEPT_BYTES = 4096
_MAX_DEPTH, _MAX_NODES, _MAX_FAULTS = 32, 200_000, 20
# A pass of a loop takes a microsecond at the very least, so this many take an hour and more.
ENDLESS_TRIPS = 4_000_000_000
# Recurrent layers, which ONNX Runtime's kernels take in one layout only.
_TIME_FIRST = ("GRU", "LSTM", "RNN")
_Graph = Any


def look(data: bytes, folder: str | None) -> Facts:
    """Return the facts of an ONNX file.

    Args:
        data: the file.
        folder: in which external data lies; None where there is only the file.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has another base in each implementation
        return Facts("onnx", len(data), f"it is no ONNX model, or damaged or cut short: {error}")
    if not model.HasField("graph") or not model.graph.node:
        return Facts("onnx", len(data), "it is no ONNX model: it holds no graph with nodes")
    looked = _Look(model, Path(folder) if folder is not None else None)
    looked.run()
    return Facts(
        "onnx",
        len(data) + looked.external_bytes,
        faults=looked.faults[:_MAX_FAULTS],
        notes=looked.notes,
        weights_bytes=looked.weights_bytes,
        activation_bytes=looked.activation_bytes,
        onnx=OnnxFacts(
            int(model.ir_version),
            looked.opsets.get("", 0),
            {name: version for name, version in looked.opsets.items() if name},
            list(looked.uses.values()),
        ),
    )


class _Scope(Struct):
    """Names that a graph can read, its outer graphs' included."""

    types: Types
    constants: dict[str, Any]
    shapes: dict[str, list[int | None] | None]


class _Look:
    """One look at one model; collects what it finds."""

    def __init__(self, model: Any, folder: Path | None) -> None:
        self.model = model
        self._folder = folder
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.uses: dict[str, Use] = {}
        self.opsets: dict[str, int] = {}
        self.weights_bytes = self.activation_bytes = self.external_bytes = 0
        self._nodes = 0
        self._unsized = 0

    def run(self) -> None:
        for entry in self.model.opset_import:
            name = "" if entry.domain == "ai.onnx" else entry.domain
            self.opsets[name] = max(self.opsets.get(name, 0), int(entry.version))
        self._weigh(self.model.graph, 0)
        if self.faults:
            return
        self._infer()
        scope = _Scope({}, {}, {})
        self.activation_bytes = self._walk(self.model.graph, scope, 0)
        if self._unsized:
            self.notes.append(
                f"{self._unsized} tensors have sizes that only a run tells; the estimate of memory"
                " leaves them out"
            )

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)

    # -- 2: constants ------------------------------------------------------------------------

    def _weigh(self, graph: _Graph, depth: int) -> None:
        if depth > _MAX_DEPTH:
            self._fault(f"its graphs are nested more than {_MAX_DEPTH} deep")
            return
        for tensor in graph.initializer:
            self._weigh_tensor(tensor, f"constant {tensor.name!r}")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    self._weigh_tensor(attribute.t, f"constant of node {node.name!r}")
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node or inner.initializer:
                        self._weigh(inner, depth + 1)

    def _weigh_tensor(self, tensor: Any, what: str) -> None:
        dims = [int(size) for size in tensor.dims]
        item_bits = onnx_types.ITEM_BITS.get(tensor.data_type)
        if any(size < 0 for size in dims) or item_bits is None:
            self._fault(
                f"{what} has the sizes {dims} and the type {tensor.data_type}; expected"
                " sizes of 0 and more and a type of ONNX"
            )
            return
        declared = (onnx_types.product(dims) * item_bits + 7) // 8
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._weigh_external(tensor, declared, what)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != declared:
                self._fault(
                    f"{what} is declared as {declared} bytes and holds {len(tensor.raw_data)}"
                )
        elif (
            tensor.data_type != onnx.TensorProto.STRING
            and declared
            and not (
                tensor.float_data
                or tensor.int32_data
                or tensor.int64_data
                or tensor.double_data
                or tensor.uint64_data
            )
        ):
            self._fault(f"{what} is declared as {declared} bytes and holds none")
        self.weights_bytes += declared
        if declared > _KEPT_BYTES:
            _empty(tensor)

    def _weigh_external(self, tensor: Any, declared: int, what: str) -> None:
        given = {entry.key: entry.value for entry in tensor.external_data}
        location = given.get("location", "")
        if self._folder is None:
            self._fault(
                f"{what} lies in another file ({location}); a bundle has one model file:"
                " save the model without external data"
            )
            return
        base = self._folder.resolve()
        path = (base / location).resolve()
        if not location or base not in path.parents:
            self._fault(f"{what} lies in {location!r}, which is not inside the model's folder")
            return
        try:
            offset, size = int(given.get("offset", 0)), path.stat().st_size
            length = int(given.get("length", declared))
        except (OSError, ValueError) as error:
            self._fault(f"{what} lies in another file that cannot be used ({location}): {error}")
            return
        if offset < 0 or length != declared or offset + length > size:
            self._fault(
                f"{what} of {declared} bytes is said to be {length} bytes from {offset} of"
                f" {location}, which has {size}"
            )
            return
        self.external_bytes += declared

    # -- 3: functions, types and shapes --------------------------------------------------------

    def _infer(self) -> None:
        try:
            if self.model.functions:
                self.model = inliner.inline_local_functions(self.model)
            self.model = shape_inference.infer_shapes(self.model, data_prop=True)
        except (
            Exception
        ) as error:  # onnx raises RuntimeError, ValueError and its own InferenceError
            self._fault(f"its types do not fit together: {str(error).strip()[:300]}")

    # -- 4: graphs -----------------------------------------------------------------------------

    def _walk(self, graph: _Graph, outer: _Scope, depth: int) -> int:
        """Look at a graph; return the peak of its activations in bytes."""
        scope = _Scope(dict(outer.types), dict(outer.constants), dict(outer.shapes))
        weights = self._declare(graph, scope)
        made = {name for node in graph.node for name in node.output if name}
        self._check_wiring(graph, scope, made)
        steps = []
        for node in graph.node:
            self._nodes += 1
            if self._nodes > _MAX_NODES:
                self._fault(f"it has more than {_MAX_NODES} nodes")
                return 0
            if node.op_type != "Constant" or node.domain:  # it becomes a constant at loading
                self._use(node, scope)
            inside = 0
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        if node.op_type == "Loop":
                            self._check_loop(node, inner, scope)
                        inside = max(inside, self._walk(inner, scope, depth + 1))
            if node.op_type == "Constant" and len(node.output) == 1:
                _note_constant(node, scope)
            steps.append(Step(list(node.input), list(node.output), inside))
        sizes = self._sizes(made, scope, {info.name for info in graph.input} - weights)
        return peak_bytes(
            steps,
            sizes,
            [info.name for info in graph.input if info.name not in weights],
            [info.name for info in graph.output],
        )

    def _declare(self, graph: _Graph, scope: _Scope) -> set[str]:
        """Fill a scope with what a graph declares; return the names of its constants."""
        for info in (*graph.input, *graph.value_info, *graph.output):
            scope.types[info.name] = onnx_types.text(info.type)
            scope.shapes[info.name] = onnx_types.shape(info.type)
        for tensor in graph.initializer:
            scope.types[tensor.name] = onnx_types.tensor_text(tensor.data_type)
            scope.constants[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            scope.types[name] = onnx_types.tensor_text(sparse.values.data_type)
            scope.constants[name] = sparse.values
        return {tensor.name for tensor in graph.initializer}

    def _check_wiring(self, graph: _Graph, scope: _Scope, made: set[str]) -> None:
        known = made | set(scope.types)
        seen: set[str] = set()
        for node in graph.node:
            for name in node.input:
                if name and name not in known:
                    self._fault(f"node {_title(node)} reads {name!r}, which nothing makes")
            for name in node.output:
                if name and name in seen:
                    self._fault(f"{name!r} is made by two nodes")
                seen.add(name)
        for info in graph.output:
            held = {one.name for one in graph.input} | {one.name for one in graph.initializer}
            if info.name not in made and info.name not in held and info.name not in scope.constants:
                self._fault(f"output {info.name!r} is made by no node")
        if _has_cycle(graph):
            self._fault("its nodes read each other in a circle")

    def _use(self, node: Any, scope: _Scope) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx_types.schema(domain, node.op_type, self.opsets.get(domain))
        if schema is None:
            use = Use(domain, node.op_type, 0, node.name)
        else:
            for text in onnx_types.misuse(node, schema):
                self._fault(f"node {_title(node)}: {text}")
            if node.op_type in _TIME_FIRST and any(
                attribute.name == "layout" and attribute.i for attribute in node.attribute
            ):
                self._fault(
                    f"node {_title(node)}: layout 1 (batch first) is computed by no release of ONNX"
                    " Runtime; export it with the time first (layout 0)"
                )
            types, text = onnx_types.bind(node, schema, scope.types)
            if text:
                self._fault(f"node {_title(node)}: {text}")
            use = Use(domain, node.op_type, schema.since, node.name, types)
            if schema.has_body and not onnx_check.runs_everywhere(use):
                body = onnx_bodies.opened(node, domain, self.opsets, scope.types)
                if body is not None:
                    inner = _Look(body, None)
                    inner.run()
                    use = structs.replace(use, body=list(inner.uses.values()))
        key = f"{domain}:{node.op_type}:{use.since}:{sorted(use.types.items())}"
        self.uses.setdefault(key, use)

    def _check_loop(self, node: Any, body: _Graph, scope: _Scope) -> None:
        """Refuse a loop that provably does not end: no limit of passes, and a condition that stays.

        The condition of the next pass is the body's first output.
        """
        trips = _constant_value(node.input[0] if node.input else "", scope)
        unlimited = not (node.input and node.input[0])
        if trips is not None and trips >= ENDLESS_TRIPS:
            unlimited = True
        start = node.input[1] if len(node.input) > 1 else ""
        starts_true = not start or bool(_constant_value(start, scope))
        if not unlimited or not starts_true:
            return
        if _stays_true(body, scope):
            self._fault(
                f"node {_title(node)} is a loop that never ends: its condition stays true and"
                f" {'nothing limits its passes' if trips is None else f'it may pass {trips} times'}"
            )
        else:
            self.notes.append(
                f"node {_title(node)} is a loop whose end only a run tells; run it with a time"
                " limit"
            )

    def _sizes(self, made: set[str], scope: _Scope, inputs: set[str]) -> dict[str, int]:
        sizes = {}
        for name in made | inputs:
            bits = onnx_types.bits(scope.types.get(name, ""))
            shape = scope.shapes.get(name)
            if shape is None or bits is None:
                self._unsized += name in made
                continue
            # A size that is free is one row, or one step.
            sizes[name] = onnx_types.product([size if size is not None else 1 for size in shape])
            sizes[name] = (sizes[name] * bits + 7) // 8
        return sizes


def _title(node: Any) -> str:
    return f"{node.name!r} ({node.op_type})" if node.name else node.op_type


def _empty(tensor: Any) -> None:
    """Drop a constant's data. Its sizes and type stay, and are all that is asked from now on."""
    for name in (
        "raw_data",
        "float_data",
        "int32_data",
        "int64_data",
        "double_data",
        "uint64_data",
        "string_data",
        "external_data",
        "data_location",
    ):
        tensor.ClearField(name)


def _note_constant(node: Any, scope: _Scope) -> None:
    for attribute in node.attribute:
        if attribute.name == "value":
            scope.constants[node.output[0]] = attribute.t
        elif attribute.name in ("value_int", "value_float"):
            value = attribute.i if attribute.name == "value_int" else attribute.f
            scope.constants[node.output[0]] = value


def _constant_value(name: str, scope: _Scope) -> int | None:
    """Return a constant of one element; None if it is no constant."""
    held = scope.constants.get(name)
    if held is None or isinstance(held, int | float):
        return None if held is None else int(held)
    if onnx_types.product([int(size) for size in held.dims]) != 1:
        return None
    try:
        return int(onnx.numpy_helper.to_array(held).reshape(-1)[0])
    except (ValueError, TypeError, OverflowError):
        return None


def _stays_true(body: _Graph, outer: _Scope) -> bool:
    """Tell whether the condition that a loop's body gives out is always true."""
    if not body.output:
        return False
    scope = _Scope({}, dict(outer.constants), {})
    for tensor in body.initializer:
        scope.constants[tensor.name] = tensor
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    for _ in range(len(body.node) + 1):
        if len(body.input) > 1 and name == body.input[1].name:
            return True
        node = makers.get(name)
        if node is None:
            return bool(_constant_value(name, scope))
        if node.op_type == "Constant":
            _note_constant(node, scope)
            return bool(_constant_value(name, scope))
        if node.op_type not in ("Identity", "Cast", "Squeeze", "Reshape") or not node.input:
            return False
        name = node.input[0]
    return False


def _has_cycle(graph: _Graph) -> bool:
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for index, needs in enumerate(waiting):
        for maker in needs:
            readers.setdefault(maker, []).append(index)
    ready = [index for index, needs in enumerate(waiting) if not needs]
    done = 0
    while ready:
        index = ready.pop()
        done += 1
        for reader in readers.get(index, []):
            waiting[reader].discard(index)
            if not waiting[reader]:
                ready.append(reader)
    return done < len(graph.node)


def _reads(node: Any) -> Iterator[str]:
    """Yield what a node reads; bodies may read names of the outer graph too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {name for one in inner.node for name in one.output}
            for one in inner.node:
                yield from (name for name in _reads(one) if name not in own)
            yield from (info.name for info in inner.output if info.name not in own)
