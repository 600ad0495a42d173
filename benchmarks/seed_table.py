"""A line of figures for each seed, then their mean and standard deviation."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["format_header", "format_row", "mean_and_deviation"]

_LABEL = 5
_WIDTH = 11


def format_header(columns: Mapping[str, str]) -> str:
    """Return the line of titles; `columns`, titles by the figures' names."""
    return "seed ".rjust(_LABEL) + "".join(f"{title:>{_WIDTH}}" for title in columns.values())


def format_row(
    label: object, columns: Mapping[str, str], figures: Mapping[str, float | None]
) -> str:
    """Return a line; bytes have no decimals, and a figure that is None is a dash.

    Parameters
    ----------
    label : object
        What the line is of.
    columns : mapping of str to str
        Titles by the figures' names.
    figures : mapping of str to float or None
        Figures by their names.
    """
    cells = []
    for name in columns:
        value, decimals = figures[name], 0 if name.endswith("_bytes") else 3
        cells.append("-" if value is None else f"{value:.{decimals}f}")
    return f"{label:>{_LABEL}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def mean_and_deviation(
    rows: Sequence[Mapping[str, float]],
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Return each figure's mean and sample standard deviation; None for the latter of one seed.

    Parameters
    ----------
    rows : sequence of mapping of str to float
        Figures of each seed, the same names in each.
    """
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    means = {name: float(values.mean()) for name, values in table.items()}
    if len(rows) == 1:
        return means, dict.fromkeys(table)
    return means, {name: float(values.std(ddof=1)) for name, values in table.items()}
