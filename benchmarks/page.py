"""Pages of the documentation whose tables programs write."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from egret.errors import EgretError
from egret.files import write_text

__all__ = ["markdown_table", "replace_parts"]


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; columns but the first are aligned to the right.

    Parameters
    ----------
    header : sequence
        Title of each column.
    rows : iterable of sequence
        Cells, as many as titles.
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def replace_parts(path: Path, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace parts of a page: what lies between `<!-- NAME -->` and `<!-- end -->`.

    Parameters
    ----------
    path : Path
        A Markdown file.
    parts : mapping of str to sequence of str
        Paragraphs by the part's name.

    Returns
    -------
    list of str
        Names of the parts that the page has.

    Raises
    ------
    EgretError
        The page cannot be read or written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EgretError(f"{path}: cannot read this page: {error}") from error
    done = []
    for name, paragraphs in parts.items():
        place = re.search(rf"<!-- {name} -->.*?<!-- end -->", text, re.DOTALL)
        if place is not None:
            body = "\n\n".join([f"<!-- {name} -->", *paragraphs, "<!-- end -->"])
            text = text[: place.start()] + body + text[place.end() :]
            done.append(name)
    write_text(path, text)
    return done
