"""Constraints: the tools read them, and the clock has the frequency asked for."""

import dataclasses
from pathlib import Path

import pytest

from egret.params import PRESETS, VENDORS
from egret_hw.project_text import constraints, fusesoc_core
from egret_hw.yowasp import run_yowasp

COUNTER = """
module counter(aclk, up, y);
  input aclk;
  input up;
  output [7:0] y;
  reg [7:0] y = 0;
  always @(posedge aclk) y <= y + up;
endmodule
"""
TEXTS = {
    "ecp5": (".lpf", 'FREQUENCY PORT "aclk" 123.5 MHZ;'),
    "ice40": (".pcf", "set_frequency aclk 123.5"),
    "xilinx7": (".xdc", "create_clock -name aclk -period 8.097 [get_ports aclk]"),
    "generic": (".sdc", "create_clock -name aclk -period 8.097 [get_ports aclk]"),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_text(vendor: str) -> None:
    params = dataclasses.replace(PRESETS["s"], vendor=vendor)
    suffix, text = constraints(params, "egret_s", 123.5)
    *comments, line = text.splitlines()
    assert (suffix, line) == TEXTS[vendor]
    assert len(comments) == 2
    assert all(comment.startswith("# ") for comment in comments)
    core = fusesoc_core(params, "egret_s", suffix)
    assert f"files: [egret_s{suffix}]" in core
    assert ("  synth:\n" in core) == (vendor != "generic")


@pytest.mark.parametrize(
    ("vendor", "synthesis", "tool", "options"),
    [
        (
            "ecp5",
            "synth_ecp5",
            "nextpnr_ecp5",
            ["--25k", "--package", "CABGA381", "--lpf-allow-unconstrained", "--lpf"],
        ),
        (
            "ice40",
            "synth_ice40",
            "nextpnr_ice40",
            ["--hx8k", "--package", "ct256", "--pcf-allow-unconstrained", "--pcf"],
        ),
    ],
)
def test_nextpnr_reads_it(
    vendor: str, synthesis: str, tool: str, options: list[str], tmp_path: Path
) -> None:
    params = dataclasses.replace(PRESETS["s"], vendor=vendor)
    suffix, text = constraints(params, "counter", 123.5)
    (tmp_path / f"counter{suffix}").write_text(text)
    (tmp_path / "counter.v").write_text(COUNTER)
    script = f"read_verilog counter.v; {synthesis} -top counter -json counter.json"
    run_yowasp("yosys", ["-q", "-p", script], tmp_path, "counter")
    printed = run_yowasp(
        tool, ["--json", "counter.json", *options, f"counter{suffix}"], tmp_path, "counter"
    )
    assert "'aclk' to 123.50 MHz" in printed
