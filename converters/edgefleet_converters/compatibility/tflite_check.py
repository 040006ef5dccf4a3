"""Whether a release of LiteRT or tflite-runtime runs a TFLite graph. Decisions only.

1. Every built-in operator is there in the version that the file states, and in the one that its
   types and options need: a file that states too low a version runs wrong, and without an error.
2. Layers with weights are of a kind that the release was seen to compute (`probe_sums`).
3. Custom operators are those that the release brings along. Names that start with Flex stand for
   all of TensorFlow, which is in none.
"""

from edgefleet_converters.compatibility.facts import OperatorVersion, TfliteFacts
from edgefleet_converters.compatibility.tflite_kernels import TfliteRelease
from edgefleet_converters.compatibility.tflite_schema import CUSTOM

_EDGE_TPU = "edgetpu-custom-op"


def reasons(facts: TfliteFacts, release: TfliteRelease) -> list[str]:
    """Return why a release does not run a graph; empty if it does."""
    found = [_fault(operator, release) for operator in facts.operators]
    return list(dict.fromkeys(text for text in found if text))


def _fault(operator: OperatorVersion, release: TfliteRelease) -> str:
    where = f" (operator {operator.place})"
    if operator.code == CUSTOM:
        return _custom_fault(operator.custom, release, where)
    held = release.versions.get(operator.code)
    if held is None:
        return f"it has no operator {operator.name}{where}"
    if operator.stated not in held:
        return f"it has {operator.name} up to version {held[-1]}, not {operator.stated}{where}"
    if operator.needed not in held:
        return (
            f"it has {operator.name} up to version {held[-1]}; this one needs version"
            f" {operator.needed} for {operator.why}, though the file states {operator.stated}: it"
            f" would load, and compute nonsense{where}"
        )
    if operator.layer in release.wrong:
        return (
            f"it does not compute {operator.layer} right, though it has the operator: weights of"
            f" another type, or scales by channel, are needed{where}"
        )
    return ""


def _custom_fault(name: str, release: TfliteRelease, where: str) -> str:
    if name in release.custom:
        return ""
    if name.startswith("Flex"):
        return (
            f"the operator {name} needs all of TensorFlow: convert the model without"
            f" SELECT_TF_OPS{where}"
        )
    if name == _EDGE_TPU:
        return (
            f"it is compiled for an Edge TPU: take the variant from before that compilation{where}"
        )
    return f"the custom operator {name} is not in it: convert with built-in operators only{where}"
