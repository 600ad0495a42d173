"""The timing diagrams: what was sampled is what was computed, in the order of the stages."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from benchmarks import diagrams
from benchmarks.diagrams import LANE, STAGES, Event, Recording

IMAGES = Path(__file__).parent.parent / "docs" / "images"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return diagrams.record()


@pytest.fixture(scope="module")
def events(recording: Recording) -> list[Event]:
    return diagrams.lane_events(recording)


def at(events: list[Event], stage: str) -> list[Event]:
    return [event for event in events if event.stage == stage]


def row_of(event: Event) -> int:
    (row,) = event.rows
    return row


def test_the_results_are_the_matrices_times_the_inputs(recording: Recording) -> None:
    cycle = recording.together
    for weights, inputs in zip(recording.weights, recording.inputs, strict=True):
        moved = recording.moves("results", cycle)
        sent = [recording.signals["results.data"][moment] for moment in moved]
        np.testing.assert_array_equal(sent, weights @ inputs.astype(np.int32))
        cycle = moved[-1] + 1


def test_a_lane_multiplies_the_non_zeros_of_its_range_in_order(
    recording: Recording, events: list[Event]
) -> None:
    operations = [event for event in at(events, "operation") if event.values]
    places = [(row_of(event), *event.values) for event in operations]
    weights, inputs = recording.weights[0], recording.inputs[0]
    everywhere = list(zip(*(axis.tolist() for axis in np.nonzero(weights)), strict=True))
    first = everywhere.index(places[0])
    assert places == everywhere[first : first + len(places)]
    factors = [event.values for event in at(events, "factors")]
    assert factors == [(weights[place], inputs[place[1]]) for place in places]


def test_the_parts_of_rows_are_sums_of_products(events: list[Event]) -> None:
    parts: dict[int, int] = {}
    for event in at(events, "factors"):
        weight, activation = event.values
        parts[row_of(event)] = parts.get(row_of(event), 0) + weight * activation
    for stage in ("sum", "store"):
        assert {row_of(event): event.values[0] for event in at(events, stage)} == parts


def test_every_row_passes_the_stages_in_order(events: list[Event]) -> None:
    rows = {row_of(event) for event in at(events, "sum")}
    assert len(rows) >= 3, "no row lies wholly in the lane"
    for row in rows:
        for which in (min, max):
            cycles = [
                which(event.cycle for event in at(events, stage) if row in event.rows)
                for stage in STAGES
            ]
            assert cycles == sorted(set(cycles)), f"row {row}: {cycles}"


def test_marks_are_the_bits_that_came_in(recording: Recording, events: list[Event]) -> None:
    """The parser's marks agree with codewords read by hand."""
    bits = "".join(event.text for event in at(events, "beat"))
    marks = "".join(event.text for event in at(events, "marks"))
    place = 0
    expected = ""
    while (one := bits.find("1", place)) >= 0:
        end = 2 * one - place
        if end >= len(bits):
            break
        expected += "." * (end - place) + ("|" if end == place else "×")
        place = end + 1
    assert marks == expected.ljust(len(marks), ".")
    assert bits.count("1") > 3
    assert recording.image.matrices[0].substream_bits[LANE] <= len(bits)


def test_the_packet_that_runs_alone_is_the_one_of_the_image(recording: Recording) -> None:
    words = [recording.signals["weights.data"][cycle] for cycle in recording.moves("weights", 0)]
    packet = b"".join(word.to_bytes(recording.params.bus_bits // 8, "little") for word in words)
    assert packet == recording.image.matrices[0].data
    *_, (_, _, end) = diagrams.section_spans(recording)
    assert end == len(words)


def test_matrices_overlap(recording: Recording) -> None:
    two = [cycle for cycle, count in enumerate(recording.signals["in_flight"]) if count == 2]
    assert any(recording.signals["finisher.busy"][cycle] for cycle in two)


def test_the_kept_pictures_are_the_present_accelerators(recording: Recording) -> None:
    for name, picture in diagrams.draw(recording).items():
        root = ElementTree.fromstring(picture)
        names = [child.tag.rpartition("}")[2] for child in root]
        assert names[:2] == ["title", "desc"]
        kept = (IMAGES / f"{name}.svg").read_text(encoding="utf-8")
        assert kept == picture, f"docs/images/{name}.svg is out of date: run `make diagrams`"
