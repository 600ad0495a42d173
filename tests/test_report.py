"""The report: costs counted by hand, page and JSON with the right numbers in them."""

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from egret.errors import FormatError
from egret.params import PRESETS
from egret_sim.report import (
    Accuracy,
    Comparison,
    HardwareRun,
    LayerReport,
    NetworkSize,
    OperatingPoint,
    Provenance,
    ReportData,
    StorageCost,
    TrainingCurve,
    WeightHistogram,
    csc_cost,
    dense_int8_cost,
    draw_figures,
    format_summary,
    print_summary,
    write_report,
)

FIGURES = {"bits_per_weight", "accuracy_over_bits", "weights", "training", "storage"}


def histogram(label: str, scale: float, shape: float) -> WeightHistogram:
    rng = np.random.default_rng(7)
    magnitudes = rng.gamma(1 / shape, size=50_000) ** (1 / shape)
    values = np.rint(rng.choice([-1, 1], 50_000) * magnitudes * scale * 256).astype(int)
    counts = sorted(Counter(values.tolist()).items())
    return WeightHistogram(
        label=label,
        step_log2=8,
        values=tuple(value for value, _ in counts),
        counts=tuple(count for _, count in counts),
        shape=shape,
        scale=float(np.sqrt(np.mean((values / 256) ** 2))),
    )


def curve(label: str, start: float, end: float) -> TrainingCurve:
    epochs = tuple(range(1, 31))
    fall = [end + (start - end) * 0.85**epoch for epoch in epochs]
    return TrainingCurve(
        label=label,
        epochs=epochs,
        shape=tuple(fall),
        rate=tuple(0.2 * number for number in fall),
        code_bits_per_weight=tuple(5 * number for number in fall),
        validation_accuracy=tuple(0.98 - 0.3 * 0.7**epoch for epoch in epochs),
    )


def sample() -> ReportData:
    def layer(name: str, rows: int, columns: int, non_zeros: int) -> LayerReport:
        weights = rows * columns
        return LayerReport(
            name=name,
            rows=rows,
            columns=columns,
            non_zeros=non_zeros,
            code="eg-table-run",
            map_entries=57,
            code_bits=weights + 4 * non_zeros,
            packet_bytes=(weights + 4 * non_zeros) // 8 + 900,
            cycles=360 * (weights // 8),
            mac_cycles=360 * non_zeros,
            dense=StorageCost(bits=8 * weights, mac_cycles=weights // 4),
            csc=StorageCost(bits=13 * non_zeros, mac_cycles=non_zeros // 3),
        )

    return ReportData(
        title="Egret on handwritten digits",
        dataset="1,797 images of 8 × 8 pixels, 360 of them held out as the test set; "
        "a 64-256-128-10 network of 50,432 weights.",
        accuracies=(
            Accuracy(label="plain, float", correct=352, total=360),
            Accuracy(label="rate-trained, float", correct=353, total=360),
            Accuracy(label="rate-trained, quantised", correct=351, total=360),
            Accuracy(label="simulated hardware", correct=351, total=360),
        ),
        sizes=(
            NetworkSize(
                label="plain",
                weights=50_432,
                zeros=2_100,
                fixed_length_bits=8 * 50_432,
                exp_golomb_0_bits=8 * 50_432 + 9_000,
                exp_golomb_bits=6 * 50_432 + 500,
                huffman_bits=300_000,
                entropy_bits=298_000.25,
                file_bytes=40_960,
            ),
            NetworkSize(
                label="rate-trained",
                weights=50_432,
                zeros=43_000,
                fixed_length_bits=6 * 50_432,
                exp_golomb_0_bits=80_691,
                exp_golomb_bits=80_691,
                huffman_bits=76_000,
                entropy_bits=60_000.5,
                file_bytes=12_345,
            ),
        ),
        operating_points=(
            OperatingPoint(
                series="plain, coarser steps",
                label="2^-3",
                payload_bits=1.75,
                correct=350,
                total=360,
            ),
            OperatingPoint(
                series="plain, coarser steps",
                label="2^-2",
                payload_bits=0.5,
                correct=40,
                total=360,
            ),
            OperatingPoint(
                series="Egret", label="0.66 bits", payload_bits=0.625, correct=357, total=360
            ),
        ),
        histograms=(histogram("plain", 0.08, 1.7), histogram("rate-trained", 0.002, 0.42)),
        curves=(curve("plain", 1.9, 1.6), curve("rate-trained", 1.9, 0.3)),
        image_bytes=9_000,
        layers=(
            layer("fc1", 256, 64, 4_000),
            layer("fc2", 128, 256, 3_000),
            layer("fc3", 10, 128, 432),
        ),
        hardware=HardwareRun(
            params=PRESETS["s"],
            images=360,
            passes=360,
            cycles=360 * 6_500,
            cycles_meaning="from the first word of a pass to its last result",
            mac_cycles=360 * 7_432,
            bus_words=360 * 4_321,
        ),
        comparisons=tuple(
            Comparison(
                layer=name, quantity=what, images=360, values=360 * rows, mismatches=mismatches
            )
            for name, rows, mismatches in (("fc1", 256, 0), ("fc2", 128, 3), ("fc3", 10, 0))
            for what in ("results (int32)", "activations (int8)")
        ),
        provenance=Provenance(
            command="egret demo --seed 0",
            seed=0,
            versions={"egret": "0.1.0", "torch": "2.13.0", "verilator": "5.48"},
        ),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    assert write_report(sample(), folder) == folder / "report.html"
    return folder


def test_dense_cost() -> None:
    assert dense_int8_cost(3, 5, 4) == StorageCost(bits=120, mac_cycles=4)
    assert dense_int8_cost(4, 4, 4) == StorageCost(bits=128, mac_cycles=4)


def test_csc_cost_of_the_example_in_the_eie_paper() -> None:
    # "[0,0,1,2,0,...(18 zeros)...,3] is encoded as v = [1,2,0,3], z = [2,0,15,2]"
    column = np.array([[0, 0, 1, 2] + [0] * 18 + [3]]).T
    # Four entries of 8 + 4 bits; two pointers that hold 0 to 4: three bits each.
    assert csc_cost(column, 1) == StorageCost(bits=4 * 12 + 2 * 3, mac_cycles=4)
    assert csc_cost(column, 1, value_bits=4) == StorageCost(bits=4 * 8 + 2 * 3, mac_cycles=4)


@pytest.mark.parametrize(("zeros", "entries"), [(0, 1), (15, 1), (16, 2), (31, 2), (32, 3)])
def test_csc_zeros_put_between(zeros: int, entries: int) -> None:
    column = np.array([[0] * zeros + [9]]).T
    assert csc_cost(column, 1).mac_cycles == entries


def test_csc_rows_are_interleaved() -> None:
    matrix = np.array(
        [
            [1, 0, 2],  # MAC 0
            [0, 0, 0],  # MAC 1
            [0, 3, 4],  # MAC 0
            [5, 0, 0],  # MAC 1
            [6, 0, 0],  # MAC 0
        ]
    )
    # MAC 0 holds 5 entries, MAC 1 one; four pointers of 3 bits in each.
    assert csc_cost(matrix, 2) == StorageCost(bits=6 * 12 + 2 * 4 * 3, mac_cycles=5)
    # With more MACs than rows only five slices exist; the fullest hold 2: two bits a pointer.
    assert csc_cost(matrix, 8) == StorageCost(bits=6 * 12 + 5 * 4 * 2, mac_cycles=2)
    assert csc_cost(np.zeros((4, 3), dtype=int), 2) == StorageCost(bits=2 * 4, mac_cycles=0)


def test_derived_figures() -> None:
    derived = sample().derived()
    assert derived["accuracy_percent"]["plain, float"] == pytest.approx(97.7778, abs=1e-4)
    assert derived["accuracy_change_points"] == pytest.approx(-0.2778, abs=1e-4)
    assert derived["bits_per_weight"]["rate-trained"] == pytest.approx(
        {
            "fixed length": 6,
            "exp-Golomb k = 0": 1.6,
            "exp-Golomb, best k": 1.6,
            "Huffman": 1.50698,
            "entropy": 1.18973,
            "whole file": 1.95828,
        },
        abs=1e-5,
    )
    assert derived["cycles_per_inference"] == 6_500
    assert derived["weights_per_cycle"] == pytest.approx(50_432 / 6_500)
    assert derived["mac_busy_percent"] == pytest.approx(100 * 7_432 / (4 * 6_500))
    assert derived["bus_busy_percent"] == pytest.approx(66.47692, abs=1e-5)
    assert derived["dense_int8"] == {"bits": 403_456, "mac_cycles": 12_608}
    assert derived["values_compared"] == 360 * 2 * 394
    assert derived["mismatches"] == 6


def test_batches_count_passes_and_images_apart() -> None:
    data = sample()
    run = replace(data.hardware, images=360, passes=90, cycles=90_000, mac_cycles=90_000)
    derived = replace(data, hardware=run).derived()
    assert derived["cycles_per_inference"] == 250
    assert derived["cycles_per_pass"] == 1_000
    assert derived["weights_per_cycle"] == pytest.approx(50.432)
    assert derived["mac_busy_percent"] == 25


def test_json_round_trip(written: Path) -> None:
    text = (written / "report.json").read_text(encoding="utf-8")
    assert ReportData.from_json(text) == sample()
    document = json.loads(text)
    assert document["derived"]["weights_per_cycle"] == 50_432 / 6_500
    assert document["data"]["accuracies"][3]["correct"] == 351
    layer = replace(sample().layers[0], cycles=None, mac_cycles=None)
    partly = replace(sample(), layers=(layer,))
    assert ReportData.from_json(partly.to_json()) == partly


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 0', '"seed": "0"', r"data\.provenance\.seed: found '0'"),
        ('"seed": 0,', "", r"data\.provenance\.seed is missing"),
        ('"correct": 353', '"correct": null', r"data\.accuracies\[1\]\.correct: found None"),
        ('"data"', '"date"', "no field 'data'"),
        ("{", "", "no JSON"),
    ],
)
def test_json_that_is_no_report(old: str, new: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ReportData.from_json(sample().to_json().replace(old, new, 1))


def test_page_is_whole_and_holds_its_figures(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    assert {path.stem for path in (written / "figures").glob("*.svg")} == FIGURES
    inline = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(inline) == page.count("<img") == len(FIGURES)
    assert {base64.b64decode(text).decode() for text in inline} == {
        path.read_text(encoding="utf-8") for path in (written / "figures").glob("*.svg")
    }
    for text in inline:
        root = ElementTree.fromstring(base64.b64decode(text))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"url\(|<script|@import", page)


def rows_of(page: str) -> list[list[str]]:
    """Return every table row of the page as the text of its cells."""
    return [
        [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        ]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.S)
    ]


def test_tables_of_the_page(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    rows = rows_of(page)
    assert ["plain, float", "352", "360", "97.78 %", "–"] in rows
    assert ["rate-trained, float", "353", "360", "98.06 %", "+0.28"] in rows
    assert ["simulated hardware", "351", "360", "97.50 %", "−0.28"] in rows
    assert [
        *("rate-trained", "50,432", "85.3 %"),
        *("6.00", "1.60", "1.60", "1.51", "1.19", "1.96", "12,345"),
    ] in rows
    assert ["plain, coarser steps", "2^-2", "0.50", "40", "11.11 %"] in rows
    assert ["Egret", "0.66 bits", "0.62", "357", "99.17 %"] in rows
    assert ["6,500", "6,500", "7.76", "28.6 %", "66.5 %"] in rows
    assert [
        *("fc1", "256 × 64", "24.4 %", "eg-table-run", "57", "1.98", "4,948", "2,048", "48.8 %"),
    ] in rows
    assert ["fc1", "131,072", "52,000", "39,584", "4,096", "1,333", "1,000", "2,048"] in rows
    assert ["fc2", "results (int32)", "360", "46,080", "3"] in rows
    assert ["all", "", "", "283,680", "6"] in rows
    for text in ("egret demo --seed 0", "torch 2.13.0", "parser_bits 4", "Egret on handwritten"):
        assert text in page
    assert "created" not in page


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    data = sample()
    layer = replace(data.layers[0], cycles=None, mac_cycles=None, map_entries=0)
    provenance = replace(data.provenance, created="2020-02-02", command="a <b> & c")
    page = write_report(replace(data, layers=(layer,), provenance=provenance), tmp_path).read_text(
        encoding="utf-8"
    )
    rows = rows_of(page)
    assert [
        "fc1",
        "256 × 64",
        "24.4 %",
        "eg-table-run",
        "zigzag",
        "1.98",
        "4,948",
        "–",
        "–",
    ] in rows
    assert "<dd>2020-02-02</dd>" in page
    assert "<code>a &lt;b&gt; &amp; c</code>" in page


def test_same_data_same_bytes(written: Path, tmp_path: Path) -> None:
    write_report(sample(), tmp_path)
    names = sorted(path.relative_to(written) for path in written.rglob("*.*"))
    assert len(names) == 2 + len(FIGURES)
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_figures_follow_the_data() -> None:
    data = sample()
    before = draw_figures(data)
    points = data.operating_points
    short = replace(data.curves[1], rate=(), validation_accuracy=(), code_bits_per_weight=())
    after = draw_figures(
        replace(
            data,
            sizes=(data.sizes[0], replace(data.sizes[1], file_bytes=1)),
            operating_points=(*points[:2], replace(points[2], correct=356)),
            histograms=(data.histograms[0], replace(data.histograms[1], shape=1.0)),
            curves=(data.curves[0], short),
            layers=data.layers[:1],
        )
    )
    assert set(before) == set(after) == FIGURES
    for name in FIGURES:
        assert before[name] != after[name], name
    # The SVG back end writes every text beside its outlines, as a comment.
    for title in ("shape ν of the weights", "rate R(θ)", "validation accuracy, %", "rate-trained"):
        assert f"<!-- {title} -->" in before["training"]
    bare = replace(data.curves[0], rate=(), validation_accuracy=())
    less = draw_figures(replace(data, curves=(bare, short)))["training"]
    assert "<!-- shape ν of the weights -->" in less
    assert "<!-- rate R(θ) -->" not in less
    # A point far below the best is in the table only.
    assert "<!-- 2^-3 -->" in before["accuracy_over_bits"]
    assert "<!-- 2^-2 -->" not in before["accuracy_over_bits"]


def test_without_operating_points_no_curve(tmp_path: Path) -> None:
    data = replace(sample(), operating_points=())
    page = write_report(data, tmp_path).read_text(encoding="utf-8")
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == FIGURES - {
        "accuracy_over_bits"
    }
    assert "Accuracy over bits" not in page + format_summary(data)


def test_summary() -> None:
    stream = io.StringIO()
    print_summary(sample(), stream)
    assert stream.getvalue() == format_summary(sample())
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["simulated", "hardware", "351", "97.50"] in lines
    assert ["exp-Golomb", "k", "=", "0", "8.18", "1.60"] in lines
    assert ["Egret", "0.66", "bits", "0.62", "99.17"] in lines
    assert ["file,", "bytes", "40,960", "12,345"] in lines
    assert ["weights", "per", "cycle", "7.76"] in lines
    assert ["dense", "int8", "(MAC", "cycles)", "8.00", "12,608"] in lines
    assert lines[-1][-5:] == ["283,680", "values", "compared,", "6", "differ"]
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 80
