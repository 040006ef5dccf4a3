"""Steps for tests of the workshop. A child process registers them by unpickling a `TestContext`."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step

_REFERENCE = "https://example.org"


@dataclass(frozen=True)
class TestContext(Context):
    """A context that says where steps leave a trace of each time they were run."""

    __test__ = False  # no test case, whatever its name

    log: str = ""


class Letter(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written behind the model."""

    letter: str = "x"


@step("append", takes=("keras", "onnx"), gives="onnx", reference=_REFERENCE, options=Letter)
def append(model: Model, options: Letter, context: TestContext) -> Model:
    """Write a letter behind the model."""
    with Path(context.log).open("a", encoding="utf-8") as log:
        log.write(options.letter)
    notes = model.notes | {"append": options.letter}
    return msgspec.structs.replace(
        model, format="onnx", data=model.data + options.letter.encode(), notes=notes
    )


@step("refuse", takes="onnx", gives="onnx", reference=_REFERENCE)
def refuse(model: Model, options: NoOptions, context: Context) -> Model:
    """Refuse."""
    raise UnsupportedError("this model has no layers")


@step("fail", takes="onnx", gives="onnx", reference=_REFERENCE)
def fail(model: Model, options: NoOptions, context: Context) -> Model:
    """Fail as a library does."""
    raise KeyError("Identity_7")


@step("abort", takes="onnx", gives="onnx", reference=_REFERENCE)
def abort(model: Model, options: NoOptions, context: Context) -> Model:
    """Kill the process."""
    os.abort()


@step("hang", takes="onnx", gives="onnx", reference=_REFERENCE)
def hang(model: Model, options: NoOptions, context: Context) -> Model:
    """Never return."""
    while True:
        time.sleep(60)


@step("misnote", takes="onnx", gives="onnx", reference=_REFERENCE)
def misnote(model: Model, options: NoOptions, context: Context) -> Model:
    """Leave a note that cannot be written."""
    return msgspec.structs.replace(model, notes={"misnote": object()})
