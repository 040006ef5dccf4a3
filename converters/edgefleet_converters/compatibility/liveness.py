"""How much memory the tensors of a graph take at the same time. Pure arithmetic.

A tensor lives from the step that makes it to the last one that reads it; inputs live from the
start, outputs to the end. The peak over the steps is what an arena that wastes nothing needs; a
real one needs more, by up to a third where sizes are mixed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One operator: what it reads and what it makes."""

    reads: Sequence[str]
    makes: Sequence[str]
    inside_bytes: int = 0


def peak_bytes(
    steps: Sequence[Step],
    sizes: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> int:
    """Return the largest sum of sizes of tensors that live at the same step.

    Args:
        steps: in the order in which they run; `inside_bytes` is what a subgraph needs.
        sizes: tensor → bytes. Tensors without a size (constants) count nothing.
        inputs: of the graph.
        outputs: of the graph.
    """
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.reads, *step.makes):
            last[name] = index
    for name in outputs:
        last[name] = len(steps)
    alive = sum(sizes.get(name, 0) for name in set(inputs))
    peak = alive
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        ends.setdefault(index, []).append(name)
    held = set(inputs)
    for index, step in enumerate(steps):
        for name in step.makes:
            if name not in held:
                held.add(name)
                alive += sizes.get(name, 0)
        peak = max(peak, alive + step.inside_bytes)
        for name in ends.get(index, []):
            if name in held:
                held.discard(name)
                alive -= sizes.get(name, 0)
    return peak
