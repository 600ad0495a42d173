"""The FPGA engineer's page: its tables and its code are true."""

import ast
import re
import subprocess
from pathlib import Path

from amaranth.lib import wiring

from egret.params import PRESETS, AcceleratorParams
from egret_hw import driver
from egret_hw.project_text import constraints
from egret_hw.register_text import c_header
from egret_hw.registers import CORE_ID, REGISTERS
from egret_hw.rtl import top_name
from egret_hw.top import AcceleratorTop

PAGE = (Path(__file__).parent.parent / "docs" / "fpga.md").read_text(encoding="utf-8")
PARAMS = AcceleratorParams(
    name="wide",
    lanes=2,
    parser_bits=4,
    parser_cut=4,
    bus_bits=128,
    batch=3,
    activation_columns=2,
)


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_ports() -> None:
    found = {}
    for name, direction, width in re.findall(
        r"^\| `(\w+)` \| (in|out) \| (\S[^|]*) \|", section("Ports"), re.MULTILINE
    ):
        names = {"A": PARAMS.activation_columns, "B": PARAMS.batch, "bus_bits": PARAMS.bus_bits}
        bits = 1
        for factor in width.strip().split(" · "):
            factor = factor.strip("`")
            bits *= names[factor] if factor in names else int(factor)
        found[name] = (direction, bits)
    members = AcceleratorTop(PARAMS).signature.members
    assert found == {
        name: ("in" if member.flow is wiring.In else "out", member.shape)
        for name, member in members.items()
    }
    assert list(found) == list(members)


def test_files() -> None:
    listed = set(
        re.findall(r"`([._]\w[\w.]*)`", re.sub(r"\n\n[^|].*", "", section("What you get")))
    )
    suffixes = {
        constraints(AcceleratorParams(**{**vars(PARAMS), "vendor": vendor}), "top", 1)[0]
        for vendor in ("ecp5", "ice40", "xilinx7", "generic")
    }
    own = {".v", ".core", ".vlt", "_regs.md", "_regs.h", "_regs.py", ".json"}
    table = "".join(line for line in section("What you get").splitlines(True) if line[0] == "|")
    listed = set(re.findall(r"`([._][\w.]+)`", table))
    assert listed == own | suffixes


def test_c_code_compiles(tmp_path: Path) -> None:
    (code,) = blocks("c")
    params = PRESETS["m-ddr3"]
    top = top_name(params)
    (tmp_path / f"{top}_regs.h").write_text(c_header(params, top))
    (tmp_path / "host.c").write_text(code)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c"]
    subprocess.run(["cc", *flags, "host.c"], cwd=tmp_path, check=True)


def test_python_code_names_what_there_is() -> None:
    for code in blocks("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "egret_hw.driver":
                assert {alias.name for alias in node.names} <= set(driver.__all__)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "driver"
            ):
                assert node.attr == "params" or hasattr(driver.Driver, node.attr)


def test_registers_are_named_right() -> None:
    names = {register.name for register in REGISTERS}
    text = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"\b(?:[A-Z]+_)*[A-Z]{4,}\b", text)) - {
        *("TLAST", "TUSER", "TKEEP", "TSTRB", "TDEST", "OKAY", "SLVERR", "PYNQ", "FIFO", "FPGA"),
        *("DESCRIPTOR", "TRUNCATED", "OVERRUN"),
    }
    assert words <= names | {"PARAM_"}
    assert f"0x{CORE_ID:08x}" in PAGE
