"""Regenerates what is kept of the generated: the presets in hw/verilog and docs/registers.md.

`make rtl` runs this; tests/test_rtl.py and tests/test_registers.py hold that both are current.
"""

import shutil
from pathlib import Path

from egret.files import write_text
from egret.params import PRESETS
from egret_hw.register_text import markdown
from egret_hw.rtl import generate_files, top_name

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "hw" / "verilog"


def main() -> None:
    """Write everything, and remove what no preset makes any more."""
    write_text(ROOT / "docs" / "registers.md", markdown())
    kept = {FOLDER / top_name(params): generate_files(params) for params in PRESETS.values()}
    for folder in FOLDER.iterdir() if FOLDER.exists() else []:
        if folder not in kept:
            shutil.rmtree(folder)
    for folder, files in kept.items():
        for file in folder.iterdir() if folder.exists() else []:
            if file.name not in files:
                file.unlink()
        for name, text in files.items():
            write_text(folder / name, text)
        print(f"{folder.relative_to(ROOT)}: {len(files)} files")


if __name__ == "__main__":
    main()
