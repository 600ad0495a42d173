"""The generated Verilog: the same every time, readable, clean under lint, and a circuit."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from egret.cli import main
from egret.errors import EgretError
from egret.params import PRESETS, AcceleratorParams
from egret_hw.axi_lite import AxiLiteSlave
from egret_hw.rtl import (
    LINT_WAIVERS,
    component_verilog,
    generate_files,
    top_name,
)
from egret_hw.synthesis import check_circuit, synthesize_ecp5
from egret_hw.verilog_text import tidy_verilog
from egret_hw.yowasp import run_yowasp
from egret_sim.runner import verilator_environment

TINY = AcceleratorParams(
    name="tiny",
    lanes=2,
    parser_bits=4,
    parser_cut=2,
    bus_bits=32,
    map_depth=64,
    activation_depth=64,
    row_depth=64,
)


KEPT = Path(__file__).parent.parent / "hw" / "verilog"


@lru_cache
def files(params: AcceleratorParams) -> dict[str, str]:
    return generate_files(params)


def verilog(params: AcceleratorParams) -> str:
    return files(params)[f"{top_name(params)}.v"]


def lint(params: AcceleratorParams, folder: Path, *waivers: Path) -> tuple[int, set[str]]:
    source = folder / f"{top_name(params)}.v"
    source.write_text(verilog(params))
    run = subprocess.run(
        ["verilator", "--lint-only", "-Wall", "--top-module", top_name(params), *waivers, source],
        env=verilator_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, set(re.findall(r"%Warning-(\w+)", run.stderr))


@pytest.mark.parametrize("params", PRESETS.values(), ids=lambda params: params.name)
def test_presets_lint_clean(params: AcceleratorParams, tmp_path: Path) -> None:
    assert lint(params, tmp_path, LINT_WAIVERS) == (0, set())


@pytest.mark.parametrize("params", PRESETS.values(), ids=lambda params: params.name)
def test_kept_files_are_current(params: AcceleratorParams) -> None:
    folder = KEPT / top_name(params)
    kept = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert set(kept) == set(files(params)), "run `make rtl`"
    stale = [name for name, text in files(params).items() if kept[name] != text]
    assert not stale, "run `make rtl`"


def test_nothing_else_is_kept() -> None:
    assert {path.name for path in KEPT.iterdir()} == set(map(top_name, PRESETS.values()))


def test_every_waiver_is_needed(tmp_path: Path) -> None:
    waived = set(re.findall(r"^lint_off -rule (\w+)", LINT_WAIVERS.read_text(), re.MULTILINE))
    _, found = lint(PRESETS["s"], tmp_path)
    # The file is named after the top, so only a file of another name shows DECLFILENAME.
    assert waived == found | {"DECLFILENAME"}


def test_text_does_not_depend_on_the_process() -> None:
    code = (
        "from egret.params import *; from egret_hw.rtl import generate_verilog; "
        "import hashlib; text = generate_verilog(PRESETS['xs-ice40']); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_text_is_readable() -> None:
    text = verilog(PRESETS["m-ddr3"])
    modules = re.findall(r"^module (.+?) ?\(", text, re.MULTILINE)
    assert all(re.fullmatch(r"egret_m_ddr3\w*", name) for name in modules)
    lanes = re.findall(r"^  egret_m_ddr3_core_lane +lane_(\d+) \(", text, re.MULTILINE)
    assert sorted(map(int, lanes)) == list(range(16))
    assert "// " + '  "lanes": 16,' in text
    assert not re.search(r"^\s+\w+\[1\] = ", text, re.MULTILINE)


def test_parameters_change_the_text() -> None:
    assert verilog(TINY) != verilog(dataclasses.replace(TINY, map_depth=128))


def test_command_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    folder = tmp_path / "out" / "tiny"
    config = str(tmp_path / "tiny.json")
    assert main(["rtl", "--config", config, "-o", str(folder), "--clock", "62.5"]) == 0
    assert f"{folder}: top module egret_tiny, 2 lanes x 4 bits" in capsys.readouterr().out
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    clock = written.pop("egret_tiny.sdc")
    assert "-period 16.000 " in clock
    assert {"egret_tiny.sdc", *written} == set(files(TINY))
    assert all(text == files(TINY)[name] for name, text in written.items())


@pytest.mark.parametrize(
    ("output", "clock", "message"),
    [
        ("core.v", "100", "core.v: found the name of a file, expected a folder for several"),
        ("there", "100", "there: found the name of a file, expected a folder for several"),
        ("out", "0", "--clock: found 0, expected MHz between 0 and 10000"),
        ("out", "nan", "--clock: found nan, expected MHz between 0 and 10000"),
    ],
)
def test_command_refuses(
    output: str, clock: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").write_text("a file")
    assert main(["rtl", "--preset", "s", "-o", str(tmp_path / output), "--clock", clock]) == 1
    assert capsys.readouterr().err.strip().endswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_core_description_names_the_files() -> None:
    text = files(TINY)["egret_tiny.core"]
    # FuseSoC wants this line first; it is no YAML of its own.
    assert text.startswith("CAPI=2:\n")
    core = yaml.safe_load(text.removeprefix("CAPI=2:\n"))
    listed = [name for fileset in core["filesets"].values() for name in fileset["files"]]
    assert sorted([*listed, "egret_tiny.core"]) == sorted(files(TINY))
    for target in core["targets"].values():
        assert target["toplevel"] == "egret_tiny"
        assert set(target["filesets"]) <= set(core["filesets"])


def test_synthesises_for_ecp5() -> None:
    cells = synthesize_ecp5(verilog(TINY), top_name(TINY))
    # A multiplier a lane, and the requantiser's 32 x 16 bits in two or more.
    assert cells.multipliers >= TINY.lanes * TINY.batch + 2
    assert 1000 < cells.luts < 20_000
    assert cells.flip_flops > 1000
    assert "Yosys" in cells.tool


@pytest.mark.parametrize("params", PRESETS.values(), ids=lambda params: params.name)
def test_kept_verilog_is_a_circuit(params: AcceleratorParams) -> None:
    top = top_name(params)
    check_circuit((KEPT / top / f"{top}.v").read_text(encoding="utf-8"), top)


@pytest.mark.parametrize("check", [check_circuit, synthesize_ecp5])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("reg r; always @* if (a) r = b; assign y = r;", "selection is not empty"),
        ("assign y = a; assign y = b;", "Found [0-9]+ problems in .check"),
        ("wire t; assign t = y ^ a; assign y = t ^ b;", "Found [0-9]+ problems in .check"),
        ("nothing there(a);", "not part of the design|is not part"),
    ],
    ids=["latch", "two drivers", "loop", "missing module"],
)
def test_what_is_no_circuit_is_refused(
    body: str, why: str, check: Callable[[str, str], object]
) -> None:
    with pytest.raises(EgretError, match=rf"^bad: yosys failed: .*({why})"):
        check(f"module bad(input a, input b, output y); {body} endmodule\n", "bad")


def test_a_loop_through_two_modules_is_refused() -> None:
    text = """
module half(input a, input b, output y); assign y = a ^ b; endmodule
module bad(input a, input b, output y);
  wire t;
  half one(a, y, t);
  half two(t, b, y);
endmodule
"""
    with pytest.raises(EgretError, match=r"^bad: yosys failed: .*Found [0-9]+ problems in .check"):
        check_circuit(text, "bad")


def test_tidied_text_is_the_same_design(tmp_path: Path) -> None:
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    from amaranth.back import verilog as back_end

    plain = back_end.convert(
        AxiLiteSlave(TINY), name="slave", emit_src=False, strip_internal_attrs=True
    )
    tidied = component_verilog(AxiLiteSlave(TINY), "slave")
    assert len(tidied) < 0.9 * len(plain)
    (tmp_path / "plain.v").write_text(plain)
    (tmp_path / "tidied.v").write_text(tidied)

    def prove(name: str) -> str:
        script = "".join(
            f"read_verilog {file}.v; prep -flatten -top slave; memory_map; opt_clean; "
            f"rename slave {side}; design -stash {side}; design -reset; "
            for file, side in (("plain", "gold"), (name, "gate"))
        )
        script += (
            "design -copy-from gold gold; design -copy-from gate gate; equiv_make gold gate both; "
            "hierarchy -top both; opt_clean; equiv_simple; equiv_induct; equiv_status -assert"
        )
        return run_yowasp("yosys", ["-p", script], tmp_path, name)

    assert "Equivalence successfully proven!" in prove("tidied")
    changed, times = re.subn(r"(?m)^(  assign .* = .*) \^ ", r"\1 & ", tidied, count=1)
    changed, others = re.subn(r"(?m)^(  assign .* = .*) \| ", r"\1 & ", changed, count=1)
    assert times + others
    (tmp_path / "changed.v").write_text(changed)
    with pytest.raises(EgretError, match="unproven"):
        prove("changed")


MODULES = """\
module top(a, y);
  input a;
  output [1:0] y;
  \\top.unit_0  unit_0 (
    .a(a), .y(y[0])
  );
  \\top.unit_1  unit_1 (
    .a(a), .y(y[1])
  );
endmodule

module \\top.unit_0 (a, y);
  input a;
  output y;
  reg [3:0] held [2:0];
  initial begin
    held[0] = 4'h0;
    held[1] = 4'h0;
    held[2] = 4'h0;
  end
  assign y = a;
endmodule

module \\top.unit_1 (a, y);
  input a;
  output y;
  reg [3:0] held [2:0];
  initial begin
    held[0] = 4'h0;
    held[1] = 4'h0;
    held[2] = 4'h0;
  end
  assign y = %s;
endmodule
"""


def test_equal_modules_are_shared() -> None:
    text = tidy_verilog(MODULES % "a")
    assert re.findall(r"^module (\w+)", text, re.MULTILINE) == ["top", "top_unit"]
    assert re.findall(r"^  top_unit\s+unit_(\d)", text, re.MULTILINE) == ["0", "1"]
    assert "for (held_entry = 0; held_entry < 3; held_entry = held_entry + 1)" in text
    assert "held[held_entry] = 4'h0;" in text


def test_unequal_modules_are_kept() -> None:
    text = tidy_verilog(MODULES % "~a")
    assert re.findall(r"^module (\w+)", text, re.MULTILINE) == ["top", "top_unit_0", "top_unit_1"]
    assert re.findall(r"^  top_unit_(\d)\s+unit_(\d)", text, re.MULTILINE) == [
        ("0", "0"),
        ("1", "1"),
    ]


def test_a_memory_with_values_keeps_them() -> None:
    text = tidy_verilog(MODULES.replace("held[1] = 4'h0", "held[1] = 4'h7") % "a")
    assert "held[1] = 4'h7" in text
