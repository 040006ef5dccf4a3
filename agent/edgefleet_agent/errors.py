"""Errors of the agent, grouped by what a caller can do about them.

A person at a terminal sees the text; a script sees the exit code that `cli` gives each family.
"""


class AgentError(Exception):
    """Base of every error raised by this distribution."""


class ConfigError(AgentError):
    """The configuration or a command line cannot be used; correct it and start again."""


class HubUnreachableError(AgentError):
    """The hub did not answer; try again later."""


class ClaimRefusedError(AgentError):
    """The hub does not accept the claim token; ask the fleet's operator for a new one."""


class ApprovalPendingError(AgentError):
    """A person at the hub has to accept this device's key; try again afterwards."""


class EnrolmentError(AgentError):
    """Enrolment cannot go on: already enrolled, or the hub's answer cannot be trusted."""


class StoreError(AgentError):
    """The agent's store cannot be used: locked, not writable, or damaged."""


class CancelledError(AgentError):
    """A piece of work was given up because nobody waits for it any more."""


class TransitionError(AgentError):
    """An event arrived at a step that has no such transition: a defect of the caller."""


class ModelError(AgentError):
    """A model cannot be loaded, or does not have the inputs and outputs of its manifest."""


class InferenceError(AgentError):
    """A model raised or gave scores that are not finite."""


class NotServingError(AgentError):
    """This device serves no model of that name."""


class ServerError(AgentError):
    """The local inference server cannot start: its address is taken, or it is not installed."""


class SourceError(AgentError):
    """The rows of a source cannot be read."""
