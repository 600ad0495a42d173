"""The floor plan: lanes on sites of their own, beside each other.

`test_place` shows that the part has such sites.
"""

import re
from itertools import pairwise

import pytest

from egret.errors import CapacityError
from egret_hw.ecp5_floorplan import lock_lanes
from egret_hw.ecp5_netlist import Cell


def _array(lanes: int, rams: int, multipliers: int, stored: int) -> dict[str, Cell]:
    cells: dict[str, Cell] = {
        f"design.core.lane_{lane}.{kind}{number}": {"type": kind}
        for lane in range(lanes)
        for kind, count in (("DP16KD", rams), ("MULT18X18D", multipliers), ("LUT4", 3))
        for number in range(count)
    }
    cells |= {f"design.core.store.bank{number}": {"type": "DP16KD"} for number in range(stored)}
    return cells | {"design.core.biases": {"type": "DP16KD"}}


def _sites(cells: dict[str, Cell], part: str, kind: str) -> list[tuple[int, int]]:
    found = []
    for name, cell in cells.items():
        if part in name and cell["type"] == kind:
            site = re.fullmatch(r"X(\d+)/Y(\d+)/[A-Z0-9_]+", cell["attributes"]["BEL"])
            assert site is not None
            found.append((int(site[1]), int(site[2])))
    return found


@pytest.mark.parametrize(
    ("lanes", "rams", "multipliers", "stored"),
    [(1, 3, 1, 2), (2, 4, 2, 2), (4, 3, 1, 4), (16, 4, 1, 4), (32, 5, 1, 4), (32, 6, 3, 4)],
)
def test_lanes_lie_beside_each_other(lanes: int, rams: int, multipliers: int, stored: int) -> None:
    cells = _array(lanes, rams, multipliers, stored)
    lock_lanes(cells)
    locked = [cell["attributes"]["BEL"] for cell in cells.values() if "attributes" in cell]
    assert len(set(locked)) == len(locked) == lanes * (rams + multipliers) + stored
    assert "attributes" not in cells["design.core.biases"]
    middles = [
        [sum(axis) / rams for axis in zip(*_sites(cells, f"lane_{lane}.", "DP16KD"), strict=True)]
        for lane in range(lanes)
    ]
    for lane, (column, row) in enumerate(middles):
        own = _sites(cells, f"lane_{lane}.", "DP16KD")
        assert len({y for _, y in own}) == 1
        # A group of four has nine columns, and the part's middle takes two more.
        assert max(own)[0] - min(own)[0] <= 9 * rams / 4 + 2
        for x, y in _sites(cells, f"lane_{lane}.", "MULT18X18D"):
            assert abs(x - column) <= 20
            assert abs(y - row) <= 24
    # Along the read-out chain the next lane is in the same row, or above the one before.
    for (x, y), (next_x, next_y) in pairwise(middles):
        assert abs(next_x - x) <= 20
        assert abs(next_y - y) <= 24
        assert x == next_x or y == next_y
    assert abs(min(_sites(cells, "store.", "DP16KD"))[0] - middles[0][0]) <= 20


def test_lanes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        CapacityError, match=r"^32 lanes of 7 block RAMs: found room for 6 each on an LFE5U-85F$"
    ):
        lock_lanes(_array(32, 7, 1, 4))
