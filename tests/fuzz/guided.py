"""Fuzzing one target guided by coverage: libFuzzer, by way of atheris, in a process of its own.

    python -m tests.fuzz.guided TARGET CORPUS [libFuzzer's options]

libFuzzer watches time and memory, and ends the process at the first finding; `__main__` reads what
it says. `CORPUS` grows: it holds every input that reached something new.
"""

import sys
from pathlib import Path

import atheris

from tests.fuzz.oracle import FoundError, judge
from tests.fuzz.targets import named


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, folder, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["edgefleet_protocol", "edgefleet_agent"]):
        target = named(name)
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    known = [data for _, data in target.corpus()] + target.seeds()
    for number, data in enumerate(known):
        (corpus / f"known-{number}").write_bytes(data)
    with target.open() as take:

        def one(data: bytes) -> None:
            try:
                judge(take, data, target.refusals, target.bounds, count_memory=False)
            except FoundError as error:
                print(f"found {error.kind}: {error}", file=sys.stderr, flush=True)
                raise

        atheris.Setup([sys.argv[0], str(corpus), *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
