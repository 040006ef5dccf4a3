"""The static check of a case: what `edgefleet-convert check` says, without a run."""

from collections.abc import Callable

from edgefleet_converters.compatibility import boards, check
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.errors import BadInputError
from edgefleet_hardware.cases import Case, model_digest
from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.results import Told
from edgefleet_hardware.targets import About

Teller = Callable[[Case, About], Told]


def teller() -> Teller:
    """Return a function that tells of a case and a target; each file is looked at once."""
    seen: dict[str, Facts] = {}

    def tell(case: Case, about: About) -> Told:
        digest = model_digest(case)
        if case.digest and case.digest != digest:
            text = f"the file has the digest {digest[:16]}; the manifest says {case.digest[:16]}"
            return Told(False, [text])
        if digest not in seen:
            seen[digest] = check.inspect(case.data, folder=None)
        try:
            board = boards.find(about.board) if about.board else None
            verdict = check.judge(seen[digest], about.runtime, about.version, board)
        except BadInputError as error:
            raise BadUseError(f"{about}: {error}") from error
        return Told(verdict.fits, verdict.reasons)

    return tell
