"""Memory whose reads and writes of an entry never meet, which spares logic around block RAM."""

from amaranth.hdl import ShapeLike
from amaranth.lib.memory import Memory

__all__ = ["table_memory"]


def table_memory(shape: ShapeLike, depth: int) -> Memory:
    """Return a memory that starts with zeros and does not define a read of what is being written.

    Block RAMs differ in what such a read gives. Where it cannot happen, saying so keeps synthesis
    from adding comparators and a bypass: some 70 cells a memory on ECP5. `no_rw_check` is
    Yosys' attribute for it; other tools ignore it.

    Parameters
    ----------
    shape : ShapeLike
        Shape of an entry.
    depth : int
        Entries.

    Returns
    -------
    Memory
        The memory, without ports.
    """
    return Memory(shape=shape, depth=depth, init=[], attrs={"no_rw_check": 1})
