"""Errors a user meets: one clear line, naming what was found and what was expected."""

__all__ = ["CapacityError", "EgretError", "FormatError", "QuantizationError"]

# Characters of a message. Names in a file may have thousands.
_LONGEST = 1000


class EgretError(Exception):
    """Base of every error that bad input can cause.

    The command line prints its message as one line and exits with status 1, without a traceback.
    A message that quotes a long name, or much of a damaged file, is cut in the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class FormatError(EgretError):
    """A file or stream is not what it should be: another kind, truncated, or damaged."""


class QuantizationError(EgretError):
    """A tensor cannot be quantised: not finite, or outside the quantiser's range."""


class CapacityError(EgretError):
    """A network does not fit the accelerator's parameters."""
