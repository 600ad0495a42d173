"""Bits of the generated Verilog that never change, as Yosys proves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egret.files import write_text
from egret_hw.yowasp import run_yowasp

__all__ = ["constant_bits"]

_DEPTH = 8
"""Registers behind each other that a constant is followed through, at least."""


def _instances(modules: dict[str, Any], module: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield modules and the paths of their instances, as `flatten` writes them."""
    yield module, path
    for name, cell in modules[module]["cells"].items():
        if cell["type"] in modules:
            yield from _instances(modules, cell["type"], f"{path}{name}.")


def constant_bits(verilog: str, top: str, folder: Path) -> dict[tuple[str, str], set[int]]:
    """Find the bits that are constant in every instance of a module.

    Proved on the whole design, by constants through gates and registers; what never changes because
    of the values that memories hold, or of states that are not reached, is not found.

    Parameters
    ----------
    verilog : str
        Text of the design.
    top : str
        Its top module.
    folder : Path
        Where Yosys works.

    Returns
    -------
    dict of tuple of str to set of int
        Bits, by module and signal.

    Raises
    ------
    EgretError
        Yosys failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "design.v", verilog)
    passes = _DEPTH * "opt_expr -fine; opt_clean; opt_dff; "
    # Words first, as the design has them, then bits: opt_clean drops other signals in each.
    script = (
        f"read_verilog design.v; hierarchy -top {top}; proc; write_json modules.json; flatten; "
        f"{passes} opt_expr -fine; write_json words.json; "
        f"simplemap; {passes} opt_expr; write_json bits.json"
    )
    run_yowasp("yosys", ["-q", "-p", script], folder, top)

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))["modules"]
        return found

    modules = read("modules.json")
    flat = [read(name)[top]["netnames"] for name in ("words.json", "bits.json")]
    found: dict[tuple[str, str], set[int]] = {}
    for module, path in _instances(modules, top, ""):
        for signal, net in modules[module]["netnames"].items():
            if net["hide_name"]:
                continue
            constant = {
                place
                for nets in flat
                if path + signal in nets
                for place, bit in enumerate(nets[path + signal]["bits"])
                if isinstance(bit, str)
            }
            found[module, signal] = found.get((module, signal), constant) & constant
    return {key: bits for key, bits in found.items() if bits}
