"""Where value maps and biases lie in an accelerator's memories, and when they are loaded.

docs/format.md, chapter 2, "Activations and results": what a load packet writes must not be in use
by the two matrices before it. Tables that do not fit all together take turns, each loaded before
its matrix in every pass; where two matrices in between do not leave room, spacers are put in,
matrices that change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from egret.errors import CapacityError

__all__ = ["Placement", "Turn", "place_tables"]

# Matrices before a load packet that may still be running.
_RUNNING = 2


@dataclass(frozen=True)
class Turn:
    """A matrix packet's place in a pass.

    Parameters
    ----------
    matrix : int
        Number of the matrix.
    is_spacer : bool
        It stands for one that changes nothing, before that one.
    """

    matrix: int
    is_spacer: bool = False


@dataclass(frozen=True)
class Placement:
    """Where the tables of one kind lie.

    Parameters
    ----------
    bases : tuple of int
        First entry of each matrix's table; 0 without one.
    stay : bool
        All tables are loaded once; else each before its matrix.
    """

    bases: tuple[int, ...]
    stay: bool


def _conflicts(turns: Sequence[Turn], place: int) -> list[int]:
    """Return the places whose tables may be in use when the one at `place` is loaded, or after."""
    count = len(turns)
    return [(place + step) % count for step in range(-_RUNNING, _RUNNING + 1) if step]


def _take_turns(
    turns: Sequence[Turn], sizes: Sequence[int], first: int, depth: int
) -> tuple[dict[int, int], int | None]:
    """Return the base of each turn's table, and the first turn whose table finds no room."""
    bases: dict[int, int] = {}
    for place, turn in enumerate(turns):
        size = 0 if turn.is_spacer else sizes[turn.matrix]
        if not size:
            continue
        near = _conflicts(turns, place)
        others = sorted(
            (bases[one], bases[one] + sizes[turns[one].matrix]) for one in near if one in bases
        )
        base = first
        for start, stop in others:
            if base + size > start and base < stop:
                base = stop
        if base + size > depth or place in near:
            return bases, place
        bases[place] = base
    return bases, None


def place_tables(
    names: Sequence[str],
    tables: Sequence[tuple[str, Sequence[int], int, int]],
) -> tuple[list[Turn], list[Placement]]:
    """Place the tables of a pass's matrices.

    Parameters
    ----------
    names : sequence of str
        Names of the matrices in running order.
    tables : sequence of (str, sequence of int, int, int)
        For each kind of table what it is called, each matrix's entries (0 for none), and the first
        entry of the memory that is free and its depth.

    Returns
    -------
    turns : list of Turn
        The matrix packets of a pass.
    placements : list of Placement
        For each kind of table.

    Raises
    ------
    CapacityError
        A matrix's tables do not fit.
    """
    turns = [Turn(number) for number in range(len(names))]
    limit = (_RUNNING + 1) * len(names) + 1
    while True:
        placements: list[Placement] = []
        for what, sizes, first, depth in tables:
            if first + sum(sizes) <= depth:
                bases = tuple(
                    first + sum(sizes[:number]) if sizes[number] else 0
                    for number in range(len(sizes))
                )
                placements.append(Placement(bases, True))
                continue
            found, failed = _take_turns(turns, sizes, first, depth)
            if failed is None:
                by_matrix = {turns[place].matrix: base for place, base in found.items()}
                placements.append(
                    Placement(
                        tuple(by_matrix.get(number, 0) for number in range(len(sizes))), False
                    )
                )
                continue
            matrix = turns[failed].matrix
            before = [turn for turn in turns if turn.is_spacer and turn.matrix == matrix]
            # At the end of a pass it may be the next pass's first tables that leave no room.
            place = failed if len(before) < _RUNNING else 0
            turns.insert(place, Turn(turns[place].matrix, True))
            if len(turns) > limit:
                raise CapacityError(
                    f"{names[matrix]}: {sizes[matrix]} {what} find no room beside those of the "
                    f"matrices before and after, expected at most {depth - first} together"
                )
            break
        else:
            return turns, placements
