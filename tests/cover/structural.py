"""Lines and toggles of the generated Verilog: reads what Verilator's models write about them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FLAGS", "Structure", "format_bits"]

FLAGS = ("--coverage-line", "--coverage-toggle", "--coverage-max-width", "4096")
"""Options of Verilator."""
_POINT = re.compile(r"^C '(.*)' (\d+)$")
_OTHER = re.compile(r"__0([0-9A-F]{2})")


def decoded(name: str) -> str:
    """Return a name as the Verilog has it: Verilator writes other characters as numbers."""
    return _OTHER.sub(lambda found: chr(int(found[1], 16)), name)


def format_bits(bits: set[int]) -> str:
    """Write bits as in Verilog: the highest first, neighbours joined."""
    parts: list[list[int]] = []
    for bit in sorted(bits, reverse=True):
        if parts and parts[-1][-1] == bit + 1:
            parts[-1][1:] = [bit]
        else:
            parts.append([bit])
    return ", ".join(":".join(map(str, part)) for part in parts)


@dataclass
class Structure:
    """Sums of coverage files: how often each point was reached.

    Equal modules are one: a point counts in whichever instance it was reached.
    """

    lines: Counter[tuple[str, int]] = field(default_factory=Counter)
    toggles: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, path: Path) -> None:
        """Add a file that a model built with `FLAGS` has written."""
        for text in path.read_text(encoding="utf-8").splitlines():
            found = _POINT.match(text)
            if not found:
                continue
            pairs = (part.split("\x02", 1) for part in found[1].split("\x01") if part)
            keys = {pair[0]: pair[-1] for pair in pairs}
            count = int(found[2])
            kind, _, module = keys["page"].partition("/")
            if kind == "v_toggle":
                name, _, step = keys["o"].partition(":")
                name = decoded(name)
                # Names of expressions begin with a dollar: what they are made of toggles too.
                if not name.startswith("$"):
                    self.toggles[module, name, step] += count
            elif kind.startswith(("v_line", "v_branch")):
                self.lines[module, int(keys["l"])] += count

    def modules(self) -> list[str]:
        """Return the modules, in order."""
        return sorted({key[0] for key in self.lines} | {key[0] for key in self.toggles})

    def totals(self, module: str) -> tuple[int, int, int, int]:
        """Return a module's lines reached and lines, toggles seen and toggles."""
        lines = [count for (own, *_), count in self.lines.items() if own == module]
        toggles = [count for (own, *_), count in self.toggles.items() if own == module]
        return sum(map(bool, lines)), len(lines), sum(map(bool, toggles)), len(toggles)

    def missing_lines(self) -> Iterator[tuple[str, int]]:
        """Yield modules and lines of the text that were not reached."""
        yield from sorted(key for key, count in self.lines.items() if not count)

    def missing_toggles(self) -> dict[tuple[str, str], set[int]]:
        """Return the bits that did not go up and down, by module and signal; none: of one bit."""
        # Of a memory all words are one.
        sums: Counter[tuple[str, str, str, str]] = Counter()
        for (module, name, step), count in self.toggles.items():
            indices = name.replace("]", "").split("[")
            bit = indices[-1] if len(indices) > 1 else ""
            sums[module, indices[0], bit, step] += count
        missing: dict[tuple[str, str], set[int]] = {}
        for (module, signal, bit, _), count in sorted(sums.items()):
            if not count:
                missing.setdefault((module, signal), set()).update({int(bit)} if bit else ())
        return missing
