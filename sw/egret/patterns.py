"""Patterns over the names of tensors: `*`, `?` and `[…]`."""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from egret.errors import EgretError

__all__ = ["check_patterns", "matches"]


def check_patterns(
    patterns: Sequence[str], argument: str, names: Collection[str], what: str
) -> None:
    """Refuse what is no list of patterns, and patterns that do nothing.

    Parameters
    ----------
    patterns : sequence of str
        The patterns.
    argument : str
        What they were given as: "include" or "exclude".
    names : collection of str
        Names of which each pattern is to match at least one.
    what : str
        What has these names: "tensors" or "parameters".

    Raises
    ------
    EgretError
        They are no list, as a single string is none, or one matches no name.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise EgretError(f"{argument}: found {patterns!r}, expected a list of patterns")
    for pattern in patterns:
        if not any(matches([name], [pattern]) for name in names):
            raise EgretError(f"pattern {pattern!r} matches none of the {len(names)} {what}")


def matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Return whether any of the names matches any of the patterns, or is one of them."""
    # A name may have brackets of its own.
    return any(
        name == pattern or fnmatchcase(name, pattern) for name in names for pattern in patterns
    )
