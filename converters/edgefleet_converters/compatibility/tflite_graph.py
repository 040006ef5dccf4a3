"""Look at a TFLite file without a runtime. Runs in a child process: the file may be hostile.

1. Read tables with every offset checked (`flatbuffer`).
2. Tensors: types, sizes, constants against the bytes that are there, quantization against shapes;
   what an interpreter refuses, or worse, does not refuse.
3. Operators: the version that each needs (`tflite_versions`), custom ones by name, subgraphs that
   call each other in a circle, loops whose condition is a constant.
4. Memory of the tensors that live at the same time.
"""

from dataclasses import dataclass, field

import numpy as np

from edgefleet_converters.compatibility import flatbuffer, tflite_versions
from edgefleet_converters.compatibility.facts import Facts, OperatorVersion, TfliteFacts
from edgefleet_converters.compatibility.flatbuffer import DamagedError, Table
from edgefleet_converters.compatibility.liveness import Step, peak_bytes
from edgefleet_converters.compatibility.tflite_schema import (
    CUSTOM,
    OPERATORS,
    SCHEMA_VERSION,
    TYPE_BITS,
    TYPES,
    BufferField,
    CodeField,
    MetadataField,
    ModelField,
    OperatorField,
    QuantizationField,
    SubgraphField,
    TensorField,
)
from edgefleet_converters.compatibility.tflite_versions import Operator, Tensor

_MAX_OPERATORS, _MAX_TENSORS, _MAX_SUBGRAPHS, _MAX_FAULTS = 100_000, 200_000, 1_000, 20
_MAX_RANK = 16
_STATED_RUNTIME = "min_runtime_version"
# Operators that call other subgraphs: slots of the indices in their options.
_CALLS = {"IF": (0, 1), "WHILE": (0, 1), "CALL_ONCE": (0,)}
# A buffer that lies behind the tables, in files of 2 GiB and more.
_FIRST_OFFSET = 2


def look(data: bytes) -> Facts:
    """Return the facts of a TFLite file."""
    try:
        looked = _Look(data)
        looked.run()
    except (DamagedError, OverflowError) as error:
        return Facts("tflite", len(data), f"it is damaged or cut short: {error}")
    return Facts(
        "tflite",
        len(data),
        faults=looked.faults[:_MAX_FAULTS],
        notes=looked.notes,
        weights_bytes=looked.weights_bytes,
        activation_bytes=looked.activation_bytes,
        tflite=TfliteFacts(
            looked.schema_version, list(looked.operators.values()), looked.stated_runtime
        ),
    )


def required_versions(data: bytes) -> list[int]:
    """Return, for each entry of the file's list of operators, the version that its uses need.

    Custom operators, and entries that nothing uses, need what the file states.

    Args:
        data: a file from a trusted writer; `look` at others in a child process.

    Raises:
        DamagedError: if it is no TFLite file.
    """
    looked = _Look(data)
    looked.run()
    return looked.required


@dataclass(frozen=True)
class _Code:
    """An entry of the list of operators that a file uses."""

    code: int
    version: int
    custom: str

    @property
    def name(self) -> str:
        return OPERATORS[self.code] if 0 <= self.code < len(OPERATORS) else f"operator {self.code}"


@dataclass
class _Subgraph:
    """A subgraph as read."""

    tensors: list[Tensor]
    buffers: list[int]
    steps: list[Step] = field(default_factory=list)
    calls: dict[int, str] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class _Look:
    """One look at one file; collects what it finds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._model = flatbuffer.root(data)
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.operators: dict[str, OperatorVersion] = {}
        self.schema_version = self._model.scalar(ModelField.VERSION, "uint32")
        self.stated_runtime = ""
        self.weights_bytes = self.activation_bytes = 0
        self.required: list[int] = []
        self._used: dict[int, int] = {}
        self._loops: list[tuple[str, int]] = []

    def run(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            self._fault(
                f"its file format is version {self.schema_version}; runtimes read {SCHEMA_VERSION}"
            )
        self._buffers = [self._extent(table) for table in self._model.tables(ModelField.BUFFERS)]
        self.weights_bytes = sum(size for _, size in self._buffers)
        codes = [self._code(table) for table in self._model.tables(ModelField.OPERATOR_CODES)]
        if self._model.count(ModelField.SUBGRAPHS) > _MAX_SUBGRAPHS:
            raise DamagedError(f"it has more than {_MAX_SUBGRAPHS} subgraphs")
        subgraphs = [
            self._subgraph(table, codes, index)
            for index, table in enumerate(self._model.tables(ModelField.SUBGRAPHS))
        ]
        if not subgraphs:
            raise DamagedError("it holds no graph")
        self.required = [self._used.get(index, code.version) for index, code in enumerate(codes)]
        self._check_calls(subgraphs)
        self._check_loops(subgraphs)
        self._weigh(subgraphs)
        self._read_stated_runtime()

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)

    # -- 1 and 2: buffers and tensors ----------------------------------------------------------

    def _extent(self, table: Table) -> tuple[int, int]:
        """Return where a buffer's bytes start, and how many there are."""
        offset = table.scalar(BufferField.OFFSET, "uint64")
        if not table.has(BufferField.DATA) and offset >= _FIRST_OFFSET:
            size = table.scalar(BufferField.SIZE, "uint64")
            if offset + size > len(self._data):
                raise DamagedError(f"a buffer of {size} bytes at {offset} leaves the file")
            return offset, size
        return table.vector(BufferField.DATA, 1)

    def _code(self, table: Table) -> _Code:
        # Operators above 127 do not fit the old field, which then holds 127.
        code = max(table.scalar(CodeField.OLD_CODE, "int8"), table.scalar(CodeField.CODE, "int32"))
        return _Code(
            code, table.scalar(CodeField.VERSION, "int32", 1), table.text(CodeField.CUSTOM_NAME)
        )

    def _subgraph(self, table: Table, codes: list[_Code], index: int) -> _Subgraph:
        if table.count(SubgraphField.TENSORS) > _MAX_TENSORS:
            raise DamagedError(f"subgraph {index} has more than {_MAX_TENSORS} tensors")
        if table.count(SubgraphField.OPERATORS) > _MAX_OPERATORS:
            raise DamagedError(f"subgraph {index} has more than {_MAX_OPERATORS} operators")
        read = [
            self._tensor(entry, f"tensor {number}" if not index else f"tensor {index}:{number}")
            for number, entry in enumerate(table.tables(SubgraphField.TENSORS))
        ]
        graph = _Subgraph([tensor for tensor, _ in read], [buffer for _, buffer in read])
        graph.inputs = self._indices(table, SubgraphField.INPUTS, graph, f"inputs of graph {index}")
        graph.outputs = self._indices(
            table, SubgraphField.OUTPUTS, graph, f"outputs of graph {index}"
        )
        for number, entry in enumerate(table.tables(SubgraphField.OPERATORS)):
            self._operator(entry, codes, graph, f"{index}:{number}")
        return graph

    def _tensor(self, table: Table, what: str) -> tuple[Tensor, int]:
        number = table.scalar(TensorField.TYPE, "int8")
        if not 0 <= number < len(TYPES):
            self._fault(f"{what} has the unknown type {number}")
            return Tensor("", []), 0
        kind, bits = TYPES[number]
        if table.count(TensorField.SHAPE) > _MAX_RANK:
            raise DamagedError(f"{what} has {table.count(TensorField.SHAPE)} dimensions")
        shape = [int(size) for size in table.numbers(TensorField.SHAPE, "i4")]
        buffer = table.scalar(TensorField.BUFFER, "uint32")
        if buffer >= max(1, len(self._buffers)):
            self._fault(f"{what} lies in buffer {buffer} of {len(self._buffers)}")
            buffer = 0
        held = self._buffers[buffer][1] if self._buffers else 0
        sparse = table.has(TensorField.SPARSITY)
        external = bool(table.scalar(TensorField.EXTERNAL_BUFFER, "uint32"))
        if external:
            self._fault(f"{what} lies in another file; a bundle has one model file")
        if held and not sparse and bits:
            self._check_constant(shape, bits, held, what)
        quantization = table.table(TensorField.QUANTIZATION)
        scales, dimension, first = self._quantization(quantization, shape, what)
        return (
            Tensor(
                kind, shape, scales, quantization is not None, dimension, first, sparse, bool(held)
            ),
            buffer,
        )

    def _check_constant(self, shape: list[int], bits: int, held: int, what: str) -> None:
        declared = 1
        for size in shape:
            declared *= size
        declared = (declared * bits + 7) // 8
        if declared != held:
            self._fault(f"{what} is declared as {declared} bytes and holds {held}")

    def _quantization(
        self, table: Table | None, shape: list[int], what: str
    ) -> tuple[int, int, float]:
        """Check how a tensor is quantized; return number of scales, their dimension, the first."""
        if table is None or table.scalar(QuantizationField.DETAILS_TYPE, "uint8"):
            return 0, 0, 0.0
        scales = np.asarray(table.numbers(QuantizationField.SCALE, "f4"), np.float32)
        if not len(scales):
            return 0, 0, 0.0
        zeros = table.count(QuantizationField.ZERO_POINT, 8)
        if zeros != len(scales):
            self._fault(f"{what} has {len(scales)} scales and {zeros} zero points")
        dimension = table.scalar(QuantizationField.DIMENSION, "int32")
        if shape and not 0 <= dimension < len(shape):
            self._fault(
                f"{what} is quantized along dimension {dimension} (quantized_dimension) of"
                f" {len(shape)}, as old converters wrote it: convert the model again"
            )
        elif len(scales) != 1 and shape and len(scales) != shape[dimension]:
            self._fault(
                f"{what} has {len(scales)} scales for {shape[dimension]} entries of dimension"
                f" {dimension}"
            )
        return len(scales), dimension, float(scales[0])

    # -- 3: operators --------------------------------------------------------------------------

    def _indices(self, table: Table, slot: int, graph: _Subgraph, what: str) -> list[int]:
        """Return tensor indices; those that lead nowhere are a fault, and become absent (-1)."""
        indices = [int(index) for index in table.numbers(slot, "i4")]
        for index in indices:
            if not -1 <= index < len(graph.tensors):
                self._fault(f"{what} name tensor {index} of {len(graph.tensors)}")
        return [index if -1 <= index < len(graph.tensors) else -1 for index in indices]

    def _operator(self, table: Table, codes: list[_Code], graph: _Subgraph, place: str) -> None:
        index = table.scalar(OperatorField.CODE_INDEX, "uint32")
        if index >= len(codes):
            self._fault(f"operator {place} is number {index} of a list of {len(codes)}")
            return
        code = codes[index]
        inputs = self._indices(table, OperatorField.INPUTS, graph, f"inputs of operator {place}")
        outputs = self._indices(table, OperatorField.OUTPUTS, graph, f"outputs of operator {place}")
        options = table.table(OperatorField.OPTIONS)
        operator = Operator(
            code.name,
            [None if one < 0 else graph.tensors[one] for one in inputs],
            [None if one < 0 else graph.tensors[one] for one in outputs],
            options,
        )
        needed = code.version if code.code == CUSTOM else tflite_versions.needed(operator)
        self._used[index] = max(needed, self._used.get(index, 1))
        layer = tflite_versions.layer(operator)
        key = f"{code.code}:{code.custom}:{code.version}:{needed}:{layer}"
        kinds = [operator.kind(number) for number in range(len(inputs))]
        self.operators.setdefault(
            key,
            OperatorVersion(
                code.code,
                code.name,
                code.version,
                max(needed, code.version),
                code.custom,
                f"{', '.join(kind or '-' for kind in kinds)} -> {operator.output().kind or '-'}",
                place,
                layer,
            ),
        )
        graph.steps.append(
            Step([str(one) for one in inputs], [str(one) for one in outputs if one >= 0])
        )
        for slot in _CALLS.get(code.name, ()):
            called = 0 if options is None else options.scalar(slot, "int32")
            graph.calls[called] = f"operator {place} ({code.name})"
            if code.name == "WHILE" and slot == 0:
                self._loops.append((f"operator {place} (WHILE)", called))

    def _check_calls(self, subgraphs: list[_Subgraph]) -> None:
        """Refuse calls of subgraphs that do not exist, and circles, which never return."""
        done: set[int] = set()
        for start in range(len(subgraphs)):
            path: list[int] = []
            waiting = [(start, 0)]
            while waiting:
                index, depth = waiting.pop()
                path = path[:depth]
                if index in path:
                    self._fault(f"graph {index} calls itself, which never ends")
                    continue
                if index in done:
                    continue
                done.add(index)
                path.append(index)
                for called, what in subgraphs[index].calls.items():
                    if 0 <= called < len(subgraphs):
                        waiting.append((called, depth + 1))
                    else:
                        self._fault(f"{what} calls graph {called} of {len(subgraphs)}")

    def _check_loops(self, subgraphs: list[_Subgraph]) -> None:
        for what, index in self._loops:
            if not 0 <= index < len(subgraphs) or not subgraphs[index].outputs:
                continue
            graph, output = subgraphs[index], subgraphs[index].outputs[0]
            if self._is_constant(graph, output):
                self._fault(f"{what} is a loop that never ends: its condition does not change")
            else:
                self.notes.append(
                    f"{what} is a loop whose end only a run tells; run it with a time limit"
                )

    def _is_constant(self, graph: _Subgraph, output: int) -> bool:
        """Tell whether a graph computes an output from constants only."""
        makers = {name: step for step in graph.steps for name in step.makes}
        waiting, seen = [str(output)], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name == "-1":
                continue
            seen.add(name)
            index = int(name)
            if index in graph.inputs or graph.tensors[index].kind == "resource":
                return False
            if name in makers:
                waiting.extend(makers[name].reads)
        return True

    # -- 4: memory -----------------------------------------------------------------------------

    def _weigh(self, subgraphs: list[_Subgraph]) -> None:
        """Add up what the subgraphs need. Each keeps memory of its own."""
        for graph in subgraphs:
            sizes = {}
            for index, tensor in enumerate(graph.tensors):
                if not tensor.constant:
                    sizes[str(index)] = _tensor_bytes(tensor)
            self.activation_bytes += peak_bytes(
                graph.steps,
                sizes,
                [str(one) for one in graph.inputs],
                [str(one) for one in graph.outputs],
            )

    def _read_stated_runtime(self) -> None:
        for entry in self._model.tables(ModelField.METADATA):
            if entry.text(MetadataField.NAME) != _STATED_RUNTIME:
                continue
            index = entry.scalar(MetadataField.BUFFER, "uint32")
            if index < len(self._buffers):
                start, size = self._buffers[index]
                text = self._data[start : start + min(size, 32)]
                self.stated_runtime = text.decode(errors="replace").rstrip("\0 ")


def _tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; a size that is free (-1) is one."""
    total = TYPE_BITS.get(tensor.kind, 0)
    for size in tensor.shape:
        total *= max(1, size)
    return (total + 7) // 8
