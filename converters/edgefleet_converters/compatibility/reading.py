"""Which look a file gets. The libraries of its format are imported, and no others."""

from edgefleet_converters.compatibility.facts import Facts


def look(kind: str, data: bytes, folder: str | None) -> Facts:
    """Return the facts of a model file of a format."""
    if kind == "tflite":
        from edgefleet_converters.compatibility import tflite_graph

        return tflite_graph.look(data)
    from edgefleet_converters.compatibility import onnx_graph

    return onnx_graph.look(data, folder)
