"""The progress display: quiet at first, then a bar or lines."""

import io

import pytest

from egret import progress
from egret.progress import Progress, format_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_work_shows_nothing(clock: list[float]) -> None:
    stream = Terminal()
    with Progress("packing", stream) as show:
        show("a", 0, 100)
        clock[0] += 1.9
        show("b", 100, 100)
    assert stream.getvalue() == ""


def test_lines_with_share_bytes_and_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress("packing", stream) as show:
        # A quarter had been done before: it does not count for the speed.
        show("a", 1_000_000, 4_000_000)
        clock[0] += 10
        show("b", 2_000_000, 4_000_000)
        clock[0] += 1
        show("c", 2_100_000, 4_000_000)
        clock[0] += 9
        show("d", 4_000_000, 4_000_000)
    first, second = stream.getvalue().splitlines()
    bar = "#" * 12 + "." * 12
    assert first == f"  packing [{bar}]  50 %, 2.0 MB of 4.0 MB, 20 s left: b"
    assert second == f"  packing [{'#' * 24}] 100 %, 4.0 MB of 4.0 MB, 0 s left: d"


def test_a_terminal_has_one_line_that_goes_away(clock: list[float]) -> None:
    stream = Terminal()
    with Progress("packing", stream) as show:
        show("a", 0, 10)
        clock[0] += 4
        show("a", 1, 10)
        clock[0] += 0.1
        show("a", 2, 10)
        clock[0] += 0.2
        show("b", 3, 10)
    parts = stream.getvalue().split("\r\x1b[K")
    assert [part[-3:] for part in parts] == ["", ": a", ": b", ""]
    assert "\n" not in stream.getvalue()


@pytest.mark.parametrize(
    ("left", "text"), [(59, "59 s"), (61, "1 min 01 s"), (3660, "1 h 01 min"), (90_000, "25 h 00")]
)
def test_time_left(clock: list[float], left: int, text: str) -> None:
    stream = io.StringIO()
    show = Progress("packing", stream)
    show("a", 0, left + 10)
    clock[0] += 10
    show("a", 10, left + 10)
    assert f", {text}" in stream.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (2_200_000_000, "2.2 GB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_nothing_to_do_is_done(clock: list[float]) -> None:
    stream = io.StringIO()
    show = Progress("packing", stream)
    clock[0] += 5
    show("a", 0, 0)
    assert "100 %" in stream.getvalue()
