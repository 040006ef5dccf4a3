"""Errors of this room, grouped by what the caller can do about them.

Every text says what was expected, what came, and for which file, column or variant. An error keeps
its type across the child processes in which conversions run (`child`).
"""


class ConversionError(Exception):
    """Base of every error raised by this distribution."""


class BadInputError(ConversionError):
    """A file or table given by a person cannot be used; the person has to change it."""


class UnsupportedError(ConversionError):
    """The model is whole, but holds something that no route of this release converts."""


class ChildError(ConversionError):
    """The child process that did the work failed in a way that the work did not foresee."""


class ChildCrashedError(ChildError):
    """The child process died by a signal, or left without an answer."""


class ChildTimeoutError(ChildError):
    """The child process ran longer than its time limit and was killed."""


class ChildMemoryError(ChildError):
    """The child process held more memory than its limit and was killed."""


class NothingVerifiedError(ConversionError):
    """Not one variant passed its verification.

    Attributes:
        refusals: variant name → reason.
    """

    def __init__(self, text: str, refusals: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.refusals = refusals or {}
