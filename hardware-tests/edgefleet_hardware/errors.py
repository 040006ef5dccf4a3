"""Errors of this room, grouped by what the caller can do about them."""


class HardwareError(Exception):
    """Base of every error raised by this distribution."""


class BadUseError(HardwareError):
    """A file, name or option given by a person cannot be used; the person has to change it."""


class TargetUnavailableError(HardwareError):
    """A target could not be tried at all: no emulator, no such release, no connection.

    Nothing is known of any model then, so this never counts as success.
    """
