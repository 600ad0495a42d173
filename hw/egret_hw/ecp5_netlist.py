"""Yosys' JSON netlists, for the passes between `synth_ecp5` and nextpnr."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Bit", "Cell", "connections", "is_constant"]

Cell = dict[str, Any]
"""A cell: `type`, `parameters`, `port_directions`, and `connections`, each port's bits."""
Bit = int | str
"""A net's number, or a constant: 0, 1, x or z."""


def is_constant(bit: Bit) -> bool:
    """Return whether a bit is a constant, not a net."""
    return isinstance(bit, str)


def connections(cells: Mapping[str, Cell]) -> Iterator[tuple[str, str, Bit, bool]]:
    """Yield every bit of every port that is connected to a net.

    Parameters
    ----------
    cells : mapping of str to dict
        A module's cells by name.

    Yields
    ------
    tuple of str, str, Bit and bool
        Cell, port, net, and whether the cell drives it.
    """
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            drives = cell["port_directions"][port] == "output"
            yield from ((name, port, bit, drives) for bit in bits if not is_constant(bit))
