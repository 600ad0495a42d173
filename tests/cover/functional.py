"""Functional coverage: what the packets that the suite's tests send have in common, and what not.

A sample is a packet with the golden model's answer and the pattern of pauses it was played with.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from egret.image_format import CODE_FIELDS, ENTRY_FIELDS, ErrorKind, PacketKind
from egret.params import CODE_NAMES, MAX_ORDER, AcceleratorParams
from egret_sim.benches.accelerator import PAUSES
from egret_sim.golden import Outcome, header_fault, read_header

__all__ = ["KINDS", "Collector", "Group", "groups_for"]

KINDS = ("eg-k", "eg-k dense", "eg-run", "eg-table", "eg-table dense", "tables", "mixed")
"""Kinds of codes: of levels alone, or with runs; exp-Golomb, or by tables."""
_GOLOMB = ("eg-k", "eg-k dense", "eg-run")
_NONE = "-"
_ENTRY_BYTES = 2


@dataclass(frozen=True)
class Group:
    """Points that are looked at together: a sample is in the bin of their values.

    Parameters
    ----------
    name : str
        Name.
    points : tuple of str
        Their names; a sample that lacks one is not counted.
    bins : frozenset of tuple of str
        What should occur.
    """

    name: str
    points: tuple[str, ...]
    bins: frozenset[tuple[str, ...]]


def _cross(points: Mapping[str, tuple[str, ...]]) -> Group:
    return Group(" x ".join(points), tuple(points), frozenset(product(*points.values())))


def _kinds(params: AcceleratorParams) -> tuple[str, ...]:
    runs, tables = (name in params.codes for name in CODE_NAMES[1:])
    known = {"eg-run": runs, "eg-table": tables, "eg-table dense": tables}
    known |= {"tables": runs and tables, "mixed": runs and tables}
    return tuple(kind for kind in KINDS if known.get(kind, True))


def groups_for(params: AcceleratorParams) -> list[Group]:
    """Return what should occur on an accelerator.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.

    Returns
    -------
    list of Group
    """
    kinds = _kinds(params)
    golomb = tuple(kind for kind in kinds if kind in _GOLOMB)
    orders = tuple(f"k={order}" for order in range(min(MAX_ORDER, params.suffix_limit) + 1))
    pauses = tuple(PAUSES)
    sizes = ("one", "some", "most")
    yes_no = ("no", "yes")
    # A matrix that reads what is there cannot keep results, but behind one that kept them.
    flags = ("load", "keep", "results", "activations", "bias", "relu", "zigzag", "more")
    sets: list[dict[str, tuple[str, ...]]] = [
        {"code": golomb, "order": orders},
        {"code": kinds, "pauses": pauses},
        {"code": kinds, "code before": kinds},
        {"code": kinds, "rows": sizes},
        {"code": kinds, "columns": sizes},
        {"code": kinds, "weights": ("all zero", "some zero", "no zero")},
        {"rows": sizes, "columns": sizes},
        {"error": tuple(kind.name for kind in ErrorKind), "pauses": ("none",)},
        {"bank": tuple(str(bank) for bank in range(params.code_banks)), "code": kinds},
        {"shift": ("0", "1 to 46", "47 and more"), "results": yes_no},
        {"multiplier": ("0", "1", "more", "65535")},
        {"starts": ("narrow", "wide")},
        *({flag: yes_no, "pauses": pauses} for flag in flags),
    ]
    if "eg-run" in kinds:
        sets.append({"run order": orders})
    return [_cross(each) for each in sets]


def _size(value: int, most: int) -> str:
    return "one" if value == 1 else "most" if value == most else "some"


@dataclass
class Collector:
    """Counts samples.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator that they are of.
    """

    params: AcceleratorParams
    counts: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    _groups: list[Group] = field(default_factory=list)
    _codes: dict[int, dict[str, str]] = field(default_factory=dict)
    _before: str = ""

    def __post_init__(self) -> None:
        self._groups = groups_for(self.params)

    def sample(self, packet: bytes, outcome: Outcome, pauses: str) -> None:
        """Count a packet.

        Parameters
        ----------
        packet : bytes
            The packet.
        outcome : Outcome
            The golden model's.
        pauses : str
            A key of `PAUSES`.
        """
        if outcome.discarded:
            return
        values = {"error": outcome.error.name, "pauses": pauses}
        if outcome.error is ErrorKind.NONE and header_fault(packet, self.params) is None:
            fields = read_header(packet)
            if fields["kind"] == PacketKind.CODE:
                self._codes[fields["bank"]] = _code(packet, fields)
            elif fields["kind"] == PacketKind.MATRIX:
                values |= self._matrix(fields, outcome)
        for group in self._groups:
            if all(point in values for point in group.points):
                self.counts[group.name, tuple(values[point] for point in group.points)] += 1

    def _matrix(self, fields: Mapping[str, int], outcome: Outcome) -> dict[str, str]:
        code = self._codes[fields["code_bank"]]
        before, self._before = self._before, code["code"]
        zeros = outcome.weights - outcome.non_zeros
        shift = fields["shift"]
        multiplier = fields["multiplier"]
        values = {
            **code,
            "rows": _size(fields["rows"], self.params.row_depth),
            "columns": _size(fields["columns"], self.params.activation_depth),
            "weights": "no zero"
            if zeros == 0
            else "all zero"
            if outcome.non_zeros == 0
            else "some zero",
            "bank": str(fields["code_bank"]),
            "shift": "0" if shift == 0 else "1 to 46" if shift < 47 else "47 and more",
            "multiplier": str(multiplier) if multiplier in (0, 1, 65535) else "more",
            "starts": "wide" if fields["wide_starts"] else "narrow",
        }
        if before:
            values["code before"] = before
        flags = {
            "load": "load_activations",
            "keep": "keep_activations",
            "results": "emit_results",
            "activations": "emit_activations",
            "bias": "has_bias",
            "relu": "relu",
            "zigzag": "zigzag",
            "more": "more",
        }
        return values | {name: "yes" if fields[flag] else "no" for name, flag in flags.items()}

    def holes(self) -> Iterator[tuple[Group, tuple[str, ...]]]:
        """Yield what should occur and did not."""
        for group in self._groups:
            for values in sorted(group.bins):
                if not self.counts[group.name, values]:
                    yield group, values

    def totals(self) -> Iterator[tuple[Group, int]]:
        """Yield groups, and how many of their bins occurred."""
        for group in self._groups:
            yield group, sum(self.counts[group.name, values] > 0 for values in group.bins)


def _code(packet: bytes, fields: Mapping[str, int]) -> dict[str, str]:
    """Return a code's kind and orders."""
    level, run = fields["level_golomb"], fields["run_golomb"]
    if fields["run_form"]:
        kind = {(1, 1): "eg-run", (0, 0): "tables"}.get((level, run), "mixed")
    else:
        kind = ("eg-k" if level else "eg-table") + (" dense" if fields["dense"] else "")
    suffix = ENTRY_FIELDS["suffix_bits"]
    header = (max(each.offset + each.width for each in CODE_FIELDS.values()) + 63) // 64 * 8
    first = [
        int.from_bytes(packet[at : at + _ENTRY_BYTES], "little") >> suffix.lsb
        & (1 << suffix.width) - 1
        for at in (header, header + 32)
    ]
    values = {"code": kind}
    if level:
        values["order"] = f"k={first[0]}"
    if fields["run_form"] and run:
        values["run order"] = f"k={first[1]}"
    return values
