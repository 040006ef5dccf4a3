"""Runs in a throw-away environment, by path: which operators does this TFLite runtime register?

Standard library, NumPy and the runtime only. Reads `{"builtin": {number: {version: model}},
"custom": {name: model}, "sums": {kind of layer: question}}` (models in hexadecimal) from standard
input. Built-in operators are looked up when an interpreter is made; custom ones when its tensors
are allocated, which runs their code on a graph that is none. That, and running layers, is done in
forks: a fork that dies has answered too.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


def is_registered(model: str) -> bool:
    """Tell whether an interpreter accepts the built-in operator version that a model names."""
    try:
        Interpreter(model_content=bytes.fromhex(model))
    except (ValueError, RuntimeError):
        return False
    return True


def has_custom(model: str) -> bool:
    """Tell whether a custom operator is there; a crash in its own code says that it is."""

    def allocate() -> bool:
        try:
            Interpreter(model_content=bytes.fromhex(model)).allocate_tensors()
        except (ValueError, RuntimeError) as error:
            return "unresolved custom op" not in str(error)
        return True

    return in_fork(allocate, if_it_dies=True)


def computes(question: dict[str, Any]) -> bool:
    """Tell whether a layer gives what it must."""

    def run() -> bool:
        try:
            interpreter = Interpreter(model_content=bytes.fromhex(question["model"]), num_threads=1)
            interpreter.allocate_tensors()
            given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
            values = np.asarray(question["input"], given["dtype"]).reshape(given["shape"])
            interpreter.set_tensor(given["index"], values)
            interpreter.invoke()
        except (ValueError, RuntimeError):
            return False
        found = interpreter.get_tensor(result["index"]).reshape(-1).astype(float)
        off = np.abs(found - np.asarray(question["expected"])).max()
        return bool(off <= question["tolerance"])  # false for NaN too

    return in_fork(run, if_it_dies=False)


def in_fork(ask: Callable[[], bool], *, if_it_dies: bool) -> bool:
    """Return what a function says in a child process."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        faulthandler.disable()  # that a runtime dies here is an answer, not an accident
        os.write(writes, b"1" if ask() else b"0")
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said == b"1" if said else if_it_dies


def main() -> None:
    """Answer on standard output, as JSON."""
    asked = json.load(sys.stdin)
    versions = {
        code: [int(version) for version, model in tries.items() if is_registered(model)]
        for code, tries in asked["builtin"].items()
    }
    custom = [name for name, model in asked["custom"].items() if has_custom(model)]
    wrong = [name for name, question in asked["sums"].items() if not computes(question)]
    json.dump({"versions": versions, "custom": custom, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main()
