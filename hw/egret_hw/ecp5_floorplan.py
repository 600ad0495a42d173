"""Gives the block RAMs and multipliers of an array's lanes sites beside each other on an ECP5.

nextpnr knows no regions for ECP5. But where a lane's block RAMs and multiplier have their sites,
the placer finds the places of its logic around them. Without, it mixes the lanes, and a path within
one crosses the others.

Lanes follow each other along the read-out chain in rows of block RAMs, back and forth, the row
store's block RAMs before the first one.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from egret.errors import CapacityError
from egret_hw.ecp5_netlist import Cell

__all__ = ["lock_lanes"]

# LFE5U-85F: groups of four block RAMs, or of four multipliers, whose first column each is.
_GROUPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
_RAM_ROWS = (22, 46, 70, 82)
_MULTIPLIER_ROWS = (34, 34, 58, 58)
"""Of each row of block RAMs, a row of multipliers nearby."""
_RAMS = tuple((first + 2 * place, place) for first in _GROUPS for place in range(4))
_MULTIPLIERS = tuple((first + place, place) for first in _GROUPS for place in (0, 1, 4, 5))
"""Column, and number within the group, of the sites of a row."""
_ROOM = 8
"""Block RAM sites between the first ones of two lanes, if there is room: two groups, about whose
columns a lane's logic has its places."""

_LANE = re.compile(r"(?:^|\.)lane_(\d+)\.")
_STORE = re.compile(r"(?:^|\.)store\.")


def lock_lanes(cells: Mapping[str, Cell]) -> None:
    """Give sites of an LFE5U-85F to the block RAMs and multipliers of lanes and row store.

    Multipliers of which a lane has more than half as many as there is room for block RAMs, which
    takes a large batch, are left to the placer. Sites are those that nextpnr names.

    Parameters
    ----------
    cells : mapping of str to dict
        A flat netlist's cells by name, which get the attribute `BEL`. Lanes are known by
        `lane_` and their number in a name, the row store by `store`.

    Raises
    ------
    CapacityError
        The part has too few sites.
    """
    rams: dict[int, list[str]] = defaultdict(list)
    multipliers: dict[int, list[str]] = defaultdict(list)
    store = []
    for name, cell in sorted(cells.items()):
        found = _LANE.search(name)
        if found is not None and cell["type"] == "DP16KD":
            rams[int(found[1])].append(name)
        elif found is not None and cell["type"] == "MULT18X18D":
            multipliers[int(found[1])].append(name)
        elif cell["type"] == "DP16KD" and _STORE.search(name):
            store.append(name)
    lanes = len(rams)
    widest = max(map(len, rams.values()), default=0)
    rows = min(len(_RAM_ROWS), max(1, round(lanes**0.5)))
    each = -(-lanes // rows)
    room = min(_ROOM, (len(_RAMS) - len(store)) // max(1, each))
    if widest > room:
        raise CapacityError(
            f"{lanes} lanes of {widest} block RAMs: found room for {room} each on an LFE5U-85F"
        )
    begin = max(len(store), (len(_RAMS) - each * room) // 2)
    _lock(cells, store, _RAMS[begin - len(store) :], _RAM_ROWS[0], "EBR")
    for number, lane in enumerate(sorted(rams)):
        row, place = divmod(number, each)
        if row % 2:
            place = each - 1 - place
        first = begin + place * room
        _lock(cells, rams[lane], _RAMS[first:], _RAM_ROWS[row], "EBR")
        if len(multipliers[lane]) <= room // 2:
            # Two rows of lanes share one of multipliers.
            first += row % 2 * (room // 2)
            sites = _MULTIPLIERS[first:]
            _lock(cells, multipliers[lane], sites, _MULTIPLIER_ROWS[row], "MULT18_")


def _lock(
    cells: Mapping[str, Cell],
    names: Sequence[str],
    sites: Sequence[tuple[int, int]],
    row: int,
    kind: str,
) -> None:
    for name, (column, number) in zip(names, sites, strict=False):
        cells[name].setdefault("attributes", {})["BEL"] = f"X{column}/Y{row}/{kind}{number}"
