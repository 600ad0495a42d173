"""Packs ECP5's carry chains tighter than Yosys and nextpnr do.

A place in a chain has a LUT of four inputs, of which Yosys uses two or three for an adder, and puts
a multiplexer before the adder into a LUT beside. nextpnr begins a chain with a cell that makes the
constant that is carried in, and ends it with one that shows what is carried out, which no one
reads. A netlist that has passed through here does the same without.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

from egret_hw.ecp5_netlist import Bit, Cell, connections, is_constant

__all__ = ["pack_carries"]

_PINS = "ABCD"
_ROWS = 1 << len(_PINS)


def _row(values: Sequence[int]) -> int:
    return sum(value << pin for pin, value in enumerate(values))


def _text(table: Sequence[int | None]) -> str:
    return "".join("1" if row else "0" for row in reversed(table))


def _table(text: str) -> list[int]:
    return [int(row) for row in reversed(text)]


def _settings(nets: Sequence[Bit]) -> Iterator[dict[Bit, int]]:
    """Yield all values of nets, with those of constants."""
    for values in product((0, 1), repeat=len(nets)):
        settings: dict[Bit, int] = {"0": 0, "1": 1, "x": 0}
        settings.update(zip(nets, values, strict=True))
        yield settings


@dataclass
class _Place:
    """A place in a chain: carries on where `pass` is set, else carries out `gives`."""

    pins: list[Bit]
    table: list[int]
    sum: list[Bit]

    def passes(self, values: dict[Bit, int]) -> int:
        return self.table[_row([values[pin] for pin in self.pins])]

    def gives(self, values: dict[Bit, int]) -> int:
        # The half LUT beside has the two first inputs, and the table's four first rows.
        return self.table[_row([values[pin] for pin in self.pins[:2]])]


def _nets(pins: Sequence[Bit]) -> list[Bit]:
    return list(dict.fromkeys(pin for pin in pins if not is_constant(pin)))


def _fit(
    nets: Sequence[Bit],
    passes: Callable[[dict[Bit, int]], int],
    gives: Callable[[dict[Bit, int]], int],
) -> tuple[list[Bit], list[int]] | None:
    """Return pins and a table for a place, if there are."""
    rows = [(values, passes(values), gives(values)) for values in _settings(nets)]
    for order in permutations(range(len(_PINS)), len(nets)):
        pins: list[Bit] = ["1"] * len(_PINS)
        for pin, net in zip(order, nets, strict=True):
            pins[pin] = net
        table: list[int | None] = [None] * _ROWS
        fits = True
        for values, passed, given in rows:
            found = [values[pin] for pin in pins]
            needs = [(_row(found), passed)] + ([] if passed else [(_row(found[:2]), given)])
            for row, wanted in needs:
                fits &= table[row] in (None, wanted)
                table[row] = wanted
        if fits:
            return pins, [int(row or 0) for row in table]
    return None


class _Chains:
    """A module's cells, and who drives and reads each net."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.cells: dict[str, Cell] = module["cells"]
        self.driver: dict[Bit, str] = {}
        self.readers: dict[Bit, list[tuple[str, str]]] = defaultdict(list)
        for name, port, bit, drives in connections(self.cells):
            if drives:
                self.driver[bit] = name
            else:
                self.readers[bit].append((name, port))
        for port in module["ports"].values():
            for bit in port["bits"]:
                self.readers[bit].append(("", ""))

    def find(self) -> list[list[str]]:
        """Return the names of each chain's cells in order."""
        chains = []
        for name, cell in self.cells.items():
            if cell["type"] != "CCU2C" or self._kind(cell["connections"]["CIN"][0]) == "CCU2C":
                continue
            chain = [name]
            while following := self._following(chain[-1]):
                chain.append(following)
            chains.append(chain)
        return chains

    def _kind(self, net: Bit) -> str:
        return str(self.cells[self.driver[net]]["type"]) if net in self.driver else ""

    def _following(self, name: str) -> str:
        for reader, port in self.readers[self._carried(name)]:
            if port == "CIN":
                return reader
        return ""

    def _carried(self, name: str) -> Bit:
        bit: Bit = self.cells[name]["connections"]["COUT"][0]
        return bit

    def places(self, chain: Sequence[str]) -> list[_Place]:
        """Read a chain's places."""
        return [
            _Place(
                [wires[f"{pin}{half}"][0] for pin in _PINS],
                _table(self.cells[name]["parameters"][f"INIT{half}"]),
                list(wires.get(f"S{half}", [])),
            )
            for name in chain
            for wires in (self.cells[name]["connections"],)
            for half in "01"
        ]

    def is_read(self, bits: Sequence[Bit]) -> bool:
        """Return whether something reads one of the nets."""
        return any(self.readers[bit] for bit in bits)

    def begin(self, chain: list[str], places: list[_Place]) -> int:
        """Free the chain of the constant carried in; return LUTs that this adds, or -1."""
        carried = self.cells[chain[0]]["connections"]["CIN"][0]
        if carried not in ("0", "1"):
            return -1
        constant = int(carried)
        inner = [self.readers[self._carried(name)] for name in chain]
        only_carried = all(len(readers) == 1 for readers in inner[:-1]) and not inner[-1]
        first = places[0]
        is_seen = self.is_read(first.sum)
        is_full = self.is_read(places[-1].sum)
        # Two places more cost no more than LUTs for the first sum and for what is drawn in there.
        draws = is_seen and any(self._absorbed(first, net) for net in _nets(first.pins))
        if only_carried and (draws or not is_full):
            # The place before the first does not look at what comes in.
            places.insert(0, _Place(["1"] * 4, [0, 0, 0, constant] + [0] * (_ROWS - 4), []))
            if not is_full:
                places.pop()
                return 0
            places.append(_Place(["1"] * 4, [0] * _ROWS, []))
            self._lengthen(chain)
            return 2
        found = _fit(
            _nets(first.pins),
            lambda values: 0,
            lambda values: constant if first.passes(values) else first.gives(values),
        )
        if found is None:
            return -1
        if is_seen:
            self.cells[f"{chain[0]}_first"] = {
                "hide_name": 0,
                "type": "LUT4",
                "parameters": {"INIT": _text([row ^ constant for row in first.table])},
                "attributes": {},
                "port_directions": dict.fromkeys(_PINS, "input") | {"Z": "output"},
                "connections": {pin: [net] for pin, net in zip(_PINS, first.pins, strict=True)}
                | {"Z": first.sum},
            }
        places[0] = _Place(*found, [])
        return int(is_seen)

    def _lengthen(self, chain: list[str]) -> None:
        """Add a cell behind a chain's last one."""
        last = self.cells[chain[-1]]
        name = f"{chain[0]}_last"
        self.cells[name] = {
            **last,
            "parameters": dict(last["parameters"]),
            "port_directions": dict(last["port_directions"]),
            "connections": {**last["connections"], "CIN": last["connections"]["COUT"]},
        }
        self.cells[name]["connections"]["COUT"] = ["x"]
        chain.append(name)

    def absorb(self, place: _Place) -> int:
        """Draw LUTs that nothing else reads into a place; return how many."""
        for net in _nets(place.pins):
            found = self._absorbed(place, net)
            if found is None:
                continue
            lut = self.driver[net]
            # What has moved is not read by a LUT of its own any more, but by this place.
            for pin in _nets([self.cells[lut]["connections"][pin][0] for pin in _PINS]):
                self.readers[pin] = [at for at in self.readers[pin] if at[0] != lut]
                self.readers[pin].append(("", ""))
            del self.cells[lut]
            place.pins, place.table = found
            return 1 + self.absorb(place)
        return 0

    def _absorbed(self, place: _Place, net: Bit) -> tuple[list[Bit], list[int]] | None:
        """Return pins and table of a place with the LUT before it, if that can move."""
        if self._kind(net) != "LUT4" or len(self.readers[net]) != 1:
            return None
        lut = self.cells[self.driver[net]]
        table = _table(lut["parameters"]["INIT"])
        pins: list[Bit] = [lut["connections"][pin][0] for pin in _PINS]
        nets = _nets([pin for pin in place.pins if pin != net] + pins)
        if len(nets) > len(_PINS):
            return None

        def with_net(values: dict[Bit, int]) -> dict[Bit, int]:
            return values | {net: table[_row([values[pin] for pin in pins])]}

        return _fit(
            nets,
            lambda values: place.passes(with_net(values)),
            lambda values: place.gives(with_net(values)),
        )

    def write(self, chain: Sequence[str], places: Sequence[_Place], *, alone: bool) -> None:
        """Write a chain's places; `alone`, nothing is carried into it."""
        for name, pair in zip(chain, zip(places[::2], places[1::2], strict=True), strict=True):
            cell = self.cells[name]
            wires = cell["connections"]
            for half, place in zip("01", pair, strict=True):
                for pin, net in zip(_PINS, place.pins, strict=True):
                    wires[f"{pin}{half}"] = [net]
                wires[f"S{half}"] = place.sum or ["x"]
                cell["parameters"][f"INIT{half}"] = _text(place.table)
        if alone:
            self.cells[chain[0]]["connections"]["CIN"] = ["x"]
        carried = self._carried(chain[-1])
        if carried == "x" or not self.readers[carried]:
            self.cells[chain[-1]]["connections"]["COUT"] = ["x"]


def pack_carries(module: dict[str, Any]) -> int:
    """Draw logic into a module's carry chains, and free them of constants and unread carries.

    A LUT moves into a place of a chain if nothing else reads it, if there are four inputs at most
    then, and if what is carried out depends on the right ones: behind a multiplexer or a gate it
    does. A constant is carried in by a place, where one is left over, or else the first place looks
    at nothing that comes in, and a LUT beside gives its sum.

    Parameters
    ----------
    module : dict
        A flat module of Yosys' JSON netlist, mapped by `synth_ecp5`. It is changed.

    Returns
    -------
    int
        LUTs that the module has fewer, without those that nextpnr need not add.
    """
    chains = _Chains(module)
    saved = 0
    for chain in chains.find():
        cells = [chains.cells[name] for name in chain]
        if any(cell["parameters"][f"INJECT1_{half}"] != "NO" for cell in cells for half in "01"):
            continue
        places = chains.places(chain)
        added = chains.begin(chain, places)
        alone = added >= 0
        saved -= max(0, added)
        # The first place's sum does not depend on what comes in.
        for place in places[alone:]:
            saved += chains.absorb(place)
        chains.write(chain, places, alone=alone)
    return saved
