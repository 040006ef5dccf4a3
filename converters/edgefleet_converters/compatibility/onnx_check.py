"""Whether a release of ONNX Runtime runs an ONNX graph on the CPU. Decisions only.

1. IR version, opset and ai.onnx.ml opset are not above the highest that the release loads.
2. Every operator has a kernel for its version and types; or float32 kernels, where ONNX Runtime
   puts casts around float16; or it stands for operators that have.
3. A type that could not be told is no match, unless the kernels take every type that the
   operator allows. Unknown is not "fits".
"""

from collections.abc import Iterator

from edgefleet_converters.compatibility import kernels
from edgefleet_converters.compatibility.facts import OnnxFacts, Use
from edgefleet_converters.compatibility.kernels import (
    FLOAT16,
    FLOAT32,
    Kernel,
    Kernels,
    covers,
)

_ML = "ai.onnx.ml"


def reasons(facts: OnnxFacts, table: Kernels, index: int) -> list[str]:
    """Return why a release does not run a graph; empty if it does.

    Args:
        facts: of the graph.
        table: of kernels.
        index: of the release in the table.
    """
    found = list(_limits(facts, table, index))
    # The versions of operators above the limit are not those of the release.
    if not found:
        for use in facts.uses:
            found.extend(text for text in [_fault(use, table, index)] if text)
    return list(dict.fromkeys(found))


def runs_everywhere(use: Use) -> bool:
    """Tell whether every release of the table has a kernel for an operator as it is used."""
    table = kernels.shipped()
    return not any(_fault(use, table, index) for index in range(len(table.releases)))


def _limits(facts: OnnxFacts, table: Kernels, index: int) -> Iterator[str]:
    release = table.releases[index]
    ml = facts.domains.get(_ML, 0)
    for what, has, highest in (
        ("IR version", facts.ir, release.ir),
        ("opset", facts.opset, release.opset),
        (f"{_ML} opset", ml, release.ml),
    ):
        if has > highest:
            yield (
                f"{what} {has} is newer than {highest}, the highest that it loads: export the"
                " model again with a lower one"
            )
    if facts.ir < 1:
        yield "the model names no IR version"
    if not facts.opset and any(not use.domain for use in facts.uses):
        yield "the model imports no opset of ONNX's own operators"


def _fault(use: Use, table: Kernels, index: int) -> str:
    """Return why an operator does not run; empty if it does."""
    held = table.of(index, use.domain, use.operator)
    where = f" (node {use.node!r})" if use.node else ""
    if use.since == 0 and not held:
        if use.domain and use.domain not in table.domains(index):
            return (
                f"operator {use.title} is a custom one: no release has kernels of the domain"
                f" {use.domain}{where}"
            )
        return f"operator {use.title} does not exist{where}"
    right_version = [kernel for kernel in held if covers(kernel, use.since)]
    if any(_takes(kernel, use.types) for kernel in right_version):
        return ""
    if FLOAT16 in use.types.values():
        widened = {name: FLOAT32 if kind == FLOAT16 else kind for name, kind in use.types.items()}
        if any(_takes(kernel, widened) for kernel in right_version):
            return ""
    if use.body:
        inner = [text for text in (_fault(part, table, index) for part in use.body) if text]
        return f"operator {use.title} is made of others, and {inner[0]}" if inner else ""
    if not right_version:
        return f"operator {use.title} of opset {use.since} has no kernel{where}"
    unknown = sorted(name for name, kind in use.types.items() if not kind)
    if unknown:
        return (
            f"operator {use.title} of opset {use.since}: the type of {', '.join(unknown)} cannot be"
            f" told from the file, so it is not known whether there is a kernel{where}"
        )
    said = ", ".join(sorted({kind for kind in use.types.values() if kind}))
    return f"operator {use.title} of opset {use.since} has no kernel for {said}{where}"


def _takes(kernel: Kernel, types: dict[str, str]) -> bool:
    """Tell whether a kernel certainly takes these types. Names that the node lacks do not count."""
    return all(types[name] in allowed for name, allowed in kernel.types.items() if name in types)
