"""Which release of a runtime is meant, and which of those that are known answers for it.

A table is kept for one release of each minor version (`1.18.1`). It answers for the whole minor
version: bug-fix releases change no kernels. A version without a table is refused, never guessed.
"""

from typing import Literal, get_args

from msgspec import Struct

from edgefleet_converters.errors import BadInputError
from edgefleet_protocol.profiles import TFLITE_RUNTIME

RuntimeName = Literal["onnxruntime", "ai-edge-litert", "tflite-runtime"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
FORMATS: dict[RuntimeName, str] = {
    "onnxruntime": "onnx",
    "ai-edge-litert": "tflite",
    "tflite-runtime": "tflite",
}
# Under which name a device reports each (`edgefleet_protocol.profiles`).
REPORTED: dict[RuntimeName, str] = {
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "litert",
    "tflite-runtime": TFLITE_RUNTIME,
}
# What people call them elsewhere: the family's name in manifests, and import names.
_ALIASES: dict[str, RuntimeName] = {
    "litert": "ai-edge-litert",
    "ai_edge_litert": "ai-edge-litert",
    "tflite_runtime": "tflite-runtime",
    "ort": "onnxruntime",
}


class Asked(Struct, frozen=True):
    """A runtime and version as a person asks for them."""

    runtime: RuntimeName
    version: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.version}"


def runtime_name(text: str) -> RuntimeName:
    """Return a runtime by its name or an alias.

    Raises:
        BadInputError: if there is none.
    """
    name = _ALIASES.get(text, text)
    if name not in RUNTIMES:
        raise BadInputError(f"no runtime is called {text!r}; there are: {', '.join(RUNTIMES)}")
    return name


def asked(text: str) -> Asked:
    """Read `onnxruntime==1.18`.

    Raises:
        BadInputError: if it has another form.
    """
    name, separator, version = text.replace(" ", "").partition("==")
    if not separator or release(version) is None:
        raise BadInputError(
            f"{text!r} is no runtime version; expected a form like onnxruntime==1.18"
        )
    return Asked(runtime_name(name), version)


def release(version: str) -> tuple[int, ...] | None:
    """Return the numbers at the front of a version; None where there are none."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers) or None


def table_for(asked_for: Asked, known: list[str]) -> str:
    """Return the release out of `known` whose table answers for a version.

    Raises:
        BadInputError: if there is none for its minor version.
    """
    wanted = release(asked_for.version) or ()
    for candidate in known:
        if (release(candidate) or ())[:2] == wanted[:2] and len(wanted) >= 2:
            return candidate
    first, last = minor(known[0]), minor(known[-1])
    raise BadInputError(
        f"{asked_for}: nothing is known of it; tables are held for {first} to {last}. Newer ones"
        " come with a newer release of edgefleet-converters, or by"
        " `python -m edgefleet_converters.compatibility.build`"
    )


def minor(version: str) -> str:
    """Return the minor version: `1.18` for `1.18.1`."""
    return ".".join(str(number) for number in (release(version) or ())[:2])
