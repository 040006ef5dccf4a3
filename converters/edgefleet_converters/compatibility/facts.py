"""What a static look at a model file finds out. Values only, the same for every runtime.

`onnx_graph` and `tflite_graph` make them, in a child process; `onnx_check` and `tflite_check` hold
them against the tables of a release.
"""

from msgspec import Struct, field


class Use(Struct, frozen=True):
    """One way in which an ONNX graph uses an operator; equal ways are listed once.

    Attributes:
        since: version of the operator: the opset that last changed it, at the model's opset.
        node: name of a node that uses it so, for error texts.
        types: name of a type in the schema, or of an argument → type of the first argument that is
            there; empty text where it could not be told.
        body: what it is made of, for operators that ONNX defines by others.
    """

    domain: str
    operator: str
    since: int
    node: str
    types: dict[str, str] = field(default_factory=dict)
    body: list["Use"] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name with the domain, where that is not ONNX's own."""
        return f"{self.domain}.{self.operator}" if self.domain else self.operator


class OperatorVersion(Struct, frozen=True):
    """One way in which a TFLite graph uses an operator; equal ways are listed once.

    Attributes:
        code: number of the built-in operator; 32 for a custom one.
        custom: name of a custom operator.
        stated: version that the file gives.
        needed: version that its types and options need, recomputed.
        why: what makes it need that version.
        place: index of an operator that uses it so, `subgraph:operator`.
        layer: kind of layer with weights, as `probe_sums` names it; empty for others.
    """

    code: int
    name: str
    stated: int
    needed: int
    custom: str = ""
    why: str = ""
    place: str = ""
    layer: str = ""


class OnnxFacts(Struct, frozen=True):
    """An ONNX graph.

    Attributes:
        opset: of the standard domain; 0 if the model imports none.
        domains: domain → version, of the others that it imports.
    """

    ir: int
    opset: int
    domains: dict[str, int]
    uses: list[Use]


class TfliteFacts(Struct, frozen=True):
    """A TFLite graph.

    Attributes:
        schema: version of the file format.
        stated_runtime: what the file claims to need, which is often wrong; empty if nothing.
    """

    schema: int
    operators: list[OperatorVersion]
    stated_runtime: str = ""


class Facts(Struct, frozen=True):
    """A model file.

    Attributes:
        format: `onnx`, `tflite`, or empty if it is neither.
        unreadable: why it cannot be read; empty if it can.
        faults: why no runtime runs it, or none ever ends.
        notes: what a person should know, though it stops nothing.
        size_bytes: of the file, and of external data.
        weights_bytes: of constants as unpacked.
        activation_bytes: of tensors that live at the same time, at one row where sizes are free.
    """

    format: str
    size_bytes: int
    unreadable: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    weights_bytes: int = 0
    activation_bytes: int = 0
    onnx: OnnxFacts | None = None
    tflite: TfliteFacts | None = None

    @property
    def memory_bytes(self) -> int:
        """Estimate of what the model takes when it runs, the runtime itself excepted."""
        return self.weights_bytes + self.activation_bytes
