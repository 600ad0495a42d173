"""Waveforms as SVG: rows of levels and of cells over numbered cycles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["MATRICES", "Cell", "Waves"]

MATRICES = (("#2f7f79", "#d3e8e5"), ("#b8702a", "#f5e0c8"), ("#5a67a8", "#dfe2f3"))
"""Dark and pale colour of each of three matrices."""

_INK = "#24313d"
_SOFT = "#55636f"
_SANS = '"Segoe UI", "Helvetica Neue", Helvetica, Arial, sans-serif'
_MONO = 'Menlo, Consolas, "DejaVu Sans Mono", monospace'
_STYLE = f"""\
    text {{ font-family: {_SANS}; fill: {_INK}; font-size: 12px; }}
    .title {{ font-size: 14px; font-weight: 600; }}
    .soft {{ fill: {_SOFT}; font-size: 11px; }}
    .cycle {{ fill: {_SOFT}; font-size: 10px; text-anchor: middle; }}
    .name {{ text-anchor: end; }}
    .cell {{ font-family: {_MONO}; font-size: 10.5px; text-anchor: middle; }}
    .grid {{ stroke: #e4e7eb; stroke-width: 1; }}
    .level {{ fill: none; stroke: {_INK}; stroke-width: 1.6; }}
"""
_TEXT_DROP = 4


@dataclass(frozen=True)
class Cell:
    """A box over some cycles.

    Parameters
    ----------
    first, end : int
        Its first cycle, and the one behind its last.
    text : str
        What it says; a line break begins a second line.
    fill, stroke : str
        Colours.
    bold : bool
        The text stands out.
    upright : bool
        The text runs upwards.
    """

    first: int
    end: int
    text: str = ""
    fill: str = "#ffffff"
    stroke: str = "#9aa5b1"
    bold: bool = False
    upright: bool = False


class Waves:
    """A picture that grows downwards, row by row.

    Parameters
    ----------
    cycles : sequence of int
        Cycles that have a column each, in order; where numbers are left out, the axis is broken.
    zero : int
        The cycle that is called 0.
    step : float
        Width of a cycle, in pixels.
    margin : int
        Room for the rows' names.
    """

    def __init__(self, cycles: Sequence[int], *, zero: int, step: float, margin: int) -> None:
        self._zero = zero
        self._step = step
        self._margin = margin
        self._right = 0.0
        self.at = 10.0
        self._back: list[str] = []
        self._parts: list[str] = []
        self.restart(cycles)

    def restart(self, cycles: Sequence[int]) -> None:
        """Show other cycles from here on."""
        self._columns: dict[int, float] = {}
        self._breaks: list[float] = []
        at = float(self._margin)
        before = cycles[0] - 1
        for cycle in cycles:
            if cycle != before + 1:
                self._breaks.append(at + self._step / 2)
                at += self._step
            self._columns[cycle] = at
            at += self._step
            before = cycle
        self._right = max(self._right, at)

    def x(self, cycle: int) -> float:
        """Return where a cycle begins; the one behind the last ends the picture."""
        if cycle in self._columns:
            return self._columns[cycle]
        return self._columns[cycle - 1] + self._step

    def text(self, x: float, y: float, text: str, style: str, more: str = "") -> None:
        """Write a line of text, its baseline at `y`."""
        self._parts.append(
            f'  <text class="{style}" x="{x:g}" y="{y:g}"{more}>{escape(text)}</text>'
        )

    def title(self, text: str, note: str = "") -> None:
        """Write a heading, and what explains it."""
        self.at += 14
        self.text(16, self.at, text, "title")
        if note:
            self.at += 18
            self.text(16, self.at, note, "soft")
        self.at += 10

    def axis(self, every: int = 1) -> None:
        """Write the cycles' numbers, of every so many."""
        self.at += 12
        for cycle, x in self._columns.items():
            if (cycle - self._zero) % every == 0:
                self.text(x + self._step / 2, self.at, str(cycle - self._zero), "cycle")
        self.at += 6

    def grid(self, top: float, every: int = 1) -> None:
        """Rule the cycles from `top` to here, behind all else."""
        for cycle, x in self._columns.items():
            if (cycle - self._zero) % every == 0:
                self._back.append(f'  <path class="grid" d="M{x:g} {top:g}V{self.at:g}"/>')

    def cut(self, top: float, reason: str) -> None:
        """Mark where the axis is broken, from `top` to here, and say why."""
        for x in self._breaks:
            middle = (top + self.at) / 2
            turn = f' transform="rotate(-90 {x + 4:g} {middle:g})" style="text-anchor:middle"'
            self._back.append(
                f'  <rect x="{x - self._step / 2:g}" y="{top:g}" width="{self._step:g}" '
                f'height="{self.at - top:g}" fill="#eceae4"/>'
            )
            self.text(x + 4, middle, reason, "soft", turn)

    def shade(self, cycles: Iterable[int], top: float, colour: str) -> None:
        """Colour cycles from `top` to here, behind all else."""
        for cycle in cycles:
            self._back.append(
                f'  <rect x="{self.x(cycle):g}" y="{top:g}" width="{self._step:g}" '
                f'height="{self.at - top:g}" fill="{colour}"/>'
            )

    def gap(self, height: float = 8) -> None:
        """Leave room."""
        self.at += height

    def _name(self, name: str, height: float) -> None:
        self.text(self._margin - 10, self.at + height / 2 + _TEXT_DROP, name, "name")

    def levels(self, name: str, samples: Sequence[int], height: float = 18) -> None:
        """Draw a signal of one bit, sampled in every cycle of the simulation."""
        self._name(name, height)
        low, high = self.at + height, self.at
        path = ""
        last: int | None = None
        for cycle, x in self._columns.items():
            level = high if samples[cycle] else low
            broken = last is None or cycle - 1 not in self._columns
            path += f"M{x:g} {level:g}" if broken else f"V{level:g}"
            path += f"H{x + self._step:g}"
            last = cycle
        self._parts.append(f'  <path class="level" d="{path}"/>')
        self.at += height + 8

    def cells(self, name: str, cells: Iterable[Cell], height: float = 22, space: float = 7) -> None:
        """Draw a row of boxes; those outside the picture are left out."""
        self._name(name, height)
        for cell in cells:
            if cell.first not in self._columns or cell.end - 1 not in self._columns:
                continue
            x, width = self.x(cell.first), self.x(cell.end) - self.x(cell.first)
            inset = min(1.0, self._step / 8)
            self._parts.append(
                f'  <rect x="{x + inset:g}" y="{self.at:g}" width="{width - 2 * inset:g}" '
                f'height="{height:g}" rx="{min(3.0, self._step / 4):g}" fill="{cell.fill}" '
                f'stroke="{cell.stroke}"/>'
            )
            if not cell.text:
                continue
            middle = x + width / 2
            lines = cell.text.split("\n")
            more = ' style="font-weight:700"' if cell.bold else f' style="fill:{_SOFT}"'
            for number, line in enumerate(lines):
                shift = (number - (len(lines) - 1) / 2) * 12 + _TEXT_DROP
                if cell.upright:
                    y = self.at + height / 2
                    turn = f' transform="rotate(-90 {middle + shift:g} {y:g})"'
                    self.text(middle + shift, y, line, "cell", more + turn)
                else:
                    self.text(middle, self.at + height / 2 + shift, line, "cell", more)
        self.at += height + space

    def legend(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Explain colours: fill, stroke, meaning."""
        self.at += 6
        x = float(self._margin)
        for fill, stroke, meaning in entries:
            self._parts.append(
                f'  <rect x="{x:g}" y="{self.at:g}" width="16" height="12" rx="3" fill="{fill}" '
                f'stroke="{stroke}"/>'
            )
            self.text(x + 22, self.at + 10, meaning, "soft")
            x += 44 + 6.2 * len(meaning)
        self.at += 22

    def svg(self, title: str, description: str) -> str:
        """Return the picture."""
        width, height = self._right + 20, self.at + 8
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
                'role="img" aria-labelledby="title desc">',
                f'  <title id="title">{escape(title)}</title>',
                f'  <desc id="desc">{escape(description)}</desc>',
                f"  <style>\n{_STYLE}  </style>",
                f'  <rect width="{width:g}" height="{height:g}" rx="14" fill="#fbfaf7"/>',
                *self._back,
                *self._parts,
                "</svg>\n",
            ]
        )
