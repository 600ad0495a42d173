"""Makes mutants: Yosys' own, sampled with a seed, and designers' mistakes, written by hand.

All mutants of a design are one Verilog text. Its top has an input `mutant` that chooses one; 0 is
the design as it is.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import egret_hw
from egret import image_format
from egret import params as parameters
from egret.errors import EgretError
from egret.files import write_text
from egret.params import AcceleratorParams
from egret_hw.yowasp import run_yowasp

__all__ = [
    "Mistake",
    "Mutant",
    "changed_root",
    "is_equal",
    "mutated_verilog",
    "prepare",
    "sample",
    "unlike_modules",
    "variant_verilog",
]

SELECT = "mutant"
"""Input of the mutated modules."""
SELECT_BITS = 16
_DESIGN, _PREPARED = "design.v", "prepared.il"
_UPPERMOST = ("top", "core")
_LEAST = 3
"""Mutants of even the smallest module."""
_MODULE = re.compile(r"^module ([^\s(]+)\s*\((.*?)\);\n(.*?)^endmodule\n", re.DOTALL | re.MULTILINE)
_PORT = re.compile(r"^  (input|output) (?:reg |wire )?(?:(\[\d+:0\]) )?(\\\S+ |\w+)", re.MULTILINE)
_INSTANCE = re.compile(r"^  (\w+) +(\\\S+|\w+) +\($", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A change of the design.

    Parameters
    ----------
    number : int
        What chooses it.
    module : str
        Module, without the top's name.
    key : str
        What and where it is, in words that change with the module's Verilog only.
    command : str
        Options of Yosys' `mutate`; empty where it is a mistake written by hand.
    """

    number: int
    module: str
    key: str
    command: str = ""


@dataclass(frozen=True)
class Mistake:
    """A mistake that a designer could make, as a change of a source file.

    Parameters
    ----------
    name : str
        What it is.
    file : str
        Module of `egret_hw`, with its ending.
    old, new : str
        Text that stands in the file once, and what is put there.
    """

    name: str
    file: str
    old: str
    new: str


def prepare(verilog: str, top: str, folder: Path) -> None:
    """Let Yosys read a design and clean it up, module by module, so that mutants change live logic.

    Parameters
    ----------
    verilog : str
        Its text.
    top : str
        Top module.
    folder : Path
        Where the files go, which the other functions need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _DESIGN, verilog)
    script = f"read_verilog {_DESIGN}; prep -top {top}; write_rtlil {_PREPARED}"
    run_yowasp("yosys", ["-q", "-p", script], folder, top)


def _sizes(folder: Path, top: str) -> dict[str, int]:
    """Return the lines of each module, which are close to the number of its cells' ports."""
    sizes: dict[str, int] = {}
    name = ""
    for line in (folder / _PREPARED).read_text(encoding="utf-8").splitlines():
        if line.startswith("module \\"):
            name = line.split("\\", 1)[1]
            sizes[name] = 0
        elif line.startswith("    connect"):
            sizes[name] += 1
    return {name: size for name, size in sizes.items() if size}


def _key(command: str, lines: Sequence[str], starts: Mapping[str, int]) -> str:
    """Say what a mutation does, with the place in the module and the text there."""
    words = shlex.split(command, posix=False)
    options: dict[str, list[str]] = {}
    for option, value in zip(words[1::2], words[2::2], strict=True):
        options.setdefault(option[1:], []).append(value)
    mode, module = options["mode"][0], options["module"][0].lstrip("\\")
    cell = options["cell"][0].split("$")
    kind = cell[1] if len(cell) > 1 else cell[0].lstrip("\\")
    bit = f"{options['port'][0]}[{options['portbit'][0]}]"
    other = f" by [{options['ctrlbit'][0]}]" if "ctrlbit" in options else ""
    wire = f" = {options['wire'][0]}[{options['wirebit'][0]}]" if "wire" in options else ""
    source = options.get("src", [":0.0-0.0"])[-1].rsplit(":", 1)[1]
    line = int(source.split(".")[0])
    text = " ".join(lines[line - 1].split()) if line else ""
    place = f"line {line - starts.get(module, 0)}: {text}" if line else "no line"
    return f"{mode}{other} {kind}.{bit}{wire}, {place}"


def sample(
    folder: Path,
    top: str,
    count: int,
    seed: int,
    *,
    first: int = 1,
    leave_out: Sequence[str] = (),
) -> list[Mutant]:
    """Choose mutants with Yosys, from every module by its size.

    The choice in a module depends on that module and the seed only, but for the share it has.

    Parameters
    ----------
    folder : Path
        Where `prepare` put the design.
    top : str
        Top module.
    count : int
        Mutants, about.
    seed : int
        Seed of Yosys' choice.
    first : int
        Number of the first one.
    leave_out : sequence of str
        Modules that get none, without the top's name.

    Returns
    -------
    list of Mutant
    """
    sizes = _sizes(folder, top)
    kept = {name: size for name, size in sizes.items() if _short(name, top) not in leave_out}
    total = sum(kept.values())
    script = [f"read_rtlil {_PREPARED}"]
    for place, (name, size) in enumerate(kept.items()):
        wanted = max(_LEAST, round(count * size / total))
        script.append(f"mutate -list {wanted} -seed {seed} -module {name} -o list-{place}")
    run_yowasp("yosys", ["-q", "-p", "; ".join(script)], folder, top)
    lines = (folder / _DESIGN).read_text(encoding="utf-8").splitlines()
    starts = {
        line.split()[1].split("(")[0]: number
        for number, line in enumerate(lines, 1)
        if line.startswith("module ")
    }
    mutants: list[Mutant] = []
    for place, name in enumerate(kept):
        # Equal ones twice would count twice.
        for command in dict.fromkeys((folder / f"list-{place}").read_text().splitlines()):
            key = f"{_short(name, top)}: {_key(command, lines, starts)}"
            mutants.append(Mutant(first + len(mutants), _short(name, top), key, command))
    return mutants


def _short(module: str, top: str) -> str:
    return module.removeprefix(f"{top}_") if module != top else "top"


def unlike_modules(verilog: str, top: str, other: str, other_top: str) -> set[str]:
    """Return the modules of a design that another one does not have just so.

    Parameters
    ----------
    verilog, other : str
        Texts of the two.
    top, other_top : str
        Their top modules.

    Returns
    -------
    set of str
        Names without the top's.
    """
    mine = {match[1]: match[0].replace(top, "") for match in _MODULE.finditer(verilog)}
    theirs = {match[0].replace(other_top, "") for match in _MODULE.finditer(other)}
    return {_short(name, top) for name, text in mine.items() if text not in theirs}


def is_equal(folder: Path, top: str, mutant: Mutant) -> bool:
    """Let Yosys prove that a mutant's module does what the design's does, if it can.

    By induction over registers of the same name, the module's instances included. The two uppermost
    modules hold everything and are not tried.

    Parameters
    ----------
    folder : Path
        Where `prepare` put the design.
    top : str
        Top module.
    mutant : Mutant
        One of Yosys.

    Raises
    ------
    EgretError
        Yosys failed.
    """
    if mutant.module in _UPPERMOST:
        return False
    module = f"{top}_{mutant.module}"
    script = [
        f"read_rtlil {_PREPARED}",
        f"copy {module} gold",
        mutant.command,
        f"rename {module} gate",
        "flatten gold gate",
        "memory_map gold gate",
        "opt_clean gold gate",
        "equiv_make gold gate both",
        "select -module both",
        "opt_clean",
        "equiv_struct",
        "equiv_simple",
        "equiv_induct",
        "equiv_status",
    ]
    printed = run_yowasp("yosys", ["-p", "; ".join(script)], folder, top)
    return "Equivalence successfully proven!" in printed


def mutated_verilog(
    folder: Path,
    top: str,
    mutants: Sequence[Mutant],
    variants: Mapping[int, str] | None = None,
) -> str:
    """Return the Verilog of a design with its mutants.

    Parameters
    ----------
    folder : Path
        Where `prepare` put the design.
    top : str
        Top module.
    mutants : sequence of Mutant
        Those of Yosys.
    variants : mapping of int to str, optional
        Texts of whole designs, by number: see `variant_verilog`.
    """
    script = [f"read_rtlil {_PREPARED}"]
    for mutant in mutants:
        control = f"-ctrl {SELECT} {SELECT_BITS} {mutant.number}"
        script.append(f"{mutant.command} {control}")
    script += ["opt_clean", "write_verilog -noattr mutated.v"]
    write_text(folder / "mutate.ys", "\n".join(script) + "\n")
    run_yowasp("yosys", ["-q", "-s", "mutate.ys"], folder, top)
    text = (folder / "mutated.v").read_text(encoding="utf-8")
    if not variants:
        return text
    base = (folder / _DESIGN).read_text(encoding="utf-8")
    return _with_variants(text, base, top, variants)


def variant_verilog(
    mistakes: Sequence[Mistake], params: AcceleratorParams, folder: Path, *, jobs: int = 2
) -> list[str]:
    """Generate the accelerator's Verilog with each mistake.

    Parameters
    ----------
    mistakes : sequence of Mistake
        The mistakes.
    params : AcceleratorParams
        The accelerator.
    folder : Path
        Where copies of `egret_hw` go.
    jobs : int
        How many are made at a time.

    Returns
    -------
    list of str

    Raises
    ------
    EgretError
        A mistake's text is not in its file, or there twice, or the result cannot be generated.
    """

    source = Path(egret_hw.__file__).parent

    def change(mistake: Mistake) -> str:
        text = (source / mistake.file).read_text(encoding="utf-8")
        found = text.count(mistake.old)
        if found != 1:
            raise EgretError(
                f"mistake {mistake.name!r}: found its text {found} times in {mistake.file}, "
                "expected it once: the source has changed, and the mistake must follow"
            )
        return text.replace(mistake.old, mistake.new)

    def make(mistake: Mistake, text: str) -> str:
        place = folder / re.sub(r"\W+", "_", mistake.name)
        kept, stamp = place / "variant.v", place / "made-of"
        inputs = (mistake.file, mistake.old, mistake.new, params.to_json(), sources)
        key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
        if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
            return kept.read_text(encoding="utf-8")
        shutil.copytree(
            source,
            place / "egret_hw",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
        write_text(place / "egret_hw" / mistake.file, text)
        program = (
            "import json, sys; from egret.params import AcceleratorParams; "
            "from egret_hw.rtl import generate_verilog; "
            "values = json.loads(sys.argv[1]); "
            "open('variant.v', 'w').write(generate_verilog(AcceleratorParams(**values)))"
        )
        paths = [str(place.resolve()), *(path for path in sys.path if path)]
        run = subprocess.run(
            [sys.executable, "-c", program, params.to_json()],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            last = " / ".join(run.stderr.strip().splitlines()[-2:])
            raise EgretError(f"mistake {mistake.name!r}: no Verilog: {last}")
        write_text(stamp, key)
        return kept.read_text(encoding="utf-8")

    # Whatever changes the text.
    files = [*sorted(source.glob("*.py")), Path(parameters.__file__), Path(image_format.__file__)]
    sources = "\0".join(path.read_text(encoding="utf-8") for path in files)
    # What is wrong must show before minutes are spent.
    changed = [change(mistake) for mistake in mistakes]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(make, mistakes, changed))


@dataclass(frozen=True)
class _Module:
    text: str
    ports: tuple[tuple[str, str, str], ...]

    @property
    def instances(self) -> list[str]:
        return [match[1] for match in _INSTANCE.finditer(self.text)]


def _modules(verilog: str) -> dict[str, _Module]:
    found = {}
    for match in _MODULE.finditer(verilog):
        ports = tuple((kind, width, name.strip()) for kind, width, name in _PORT.findall(match[3]))
        found[match[1]] = _Module(match[0], tuple(sorted(ports)))
    return found


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Rename modules: where one is defined, and where one is used."""
    text = _MODULE.sub(
        lambda match: match[0].replace(
            f"module {match[1]}", f"module {names.get(match[1], match[1])}", 1
        ),
        text,
    )
    return _INSTANCE.sub(lambda match: f"  {names.get(match[1], match[1])} {match[2]} (", text)


def _unmutated(text: str, mutated: Collection[str]) -> str:
    """Choose no mutant in the modules that a module uses."""

    def link(match: re.Match[str]) -> str:
        return match[0] + (f"\n    .{SELECT}({SELECT_BITS}'d0)," if match[1] in mutated else "")

    return _INSTANCE.sub(link, text)


def changed_root(base: str, variant: str, top: str) -> tuple[str, list[str]]:
    """Return the lowest module that holds every change and keeps its ports; what it must copy.

    Parameters
    ----------
    base, variant : str
        Texts of two designs.
    top : str
        Their top module.

    Raises
    ------
    EgretError
        They are equal, or even the top's ports are not.
    """
    before, after = _modules(base), _modules(variant)
    unlike = {name for name in after if name not in before or before[name].text != after[name].text}
    if not unlike:
        raise EgretError(f"{top}: the variant is the design itself, expected a change")

    def below(name: str) -> set[str]:
        return {name}.union(*(below(child) for child in after[name].instances if child in after))

    root = top
    while True:
        for child in dict.fromkeys(after[root].instances):
            if (
                child in after
                and child in before
                and unlike <= below(child)
                and before[child].ports == after[child].ports
            ):
                root = child
                break
        else:
            break
    if before[root].ports != after[root].ports or root == top:
        raise EgretError(f"{top}: the variant changes the top itself, expected a module below it")
    # A module that holds a changed one is a copy too.
    copied = [name for name in below(root) if below(name) & unlike or name == root]
    return root, sorted(copied)


def _with_variants(text: str, base: str, top: str, variants: Mapping[int, str]) -> str:
    """Put each variant's changed modules beside the design's; a wrapper chooses among them."""
    roots: dict[str, list[tuple[int, str]]] = {}
    added = []
    mutated = {
        name
        for name, module in _modules(text).items()
        if ("input", f"[{SELECT_BITS - 1}:0]", SELECT) in module.ports
    }
    for number, variant in variants.items():
        root, copied = changed_root(base, variant, top)
        names = {name: f"{name}__v{number}" for name in copied}
        modules = _modules(variant)
        added += [_unmutated(_renamed(modules[name].text, names), mutated) for name in copied]
        roots.setdefault(root, []).append((number, names[root]))
    modules = _modules(text)
    names = {root: f"{root}__base" for root in roots}
    # Only the definition is renamed: whoever uses it gets the wrapper.
    for root, name in names.items():
        text = text.replace(f"module {root}(", f"module {name}(", 1)
        text = text.replace(f"module {root} (", f"module {name} (", 1)
    wrappers = [
        _wrapper(root, names[root], modules[root], choices) for root, choices in roots.items()
    ]
    return "\n".join([text, *added, *wrappers])


def _wrapper(name: str, base: str, module: _Module, choices: Sequence[tuple[int, str]]) -> str:
    def written(port: str) -> str:
        return f"{port} " if port.startswith("\\") else port

    lines = [f"module {name}({', '.join(written(port) for _, _, port in module.ports)});"]
    for kind, width, port in module.ports:
        lines.append(f"  {kind} {width} {written(port)};")
    lines += [
        "  integer chosen;",
        '  initial if (!$value$plusargs("mutant=%d", chosen)) chosen = 0;',
    ]
    outputs = [(width, port) for kind, width, port in module.ports if kind == "output"]
    for place, (_, instance) in enumerate([(0, base), *choices]):
        links = []
        for kind, width, port in module.ports:
            local = port
            if kind == "output":
                local = f"o{place}_{outputs.index((width, port))}"
                lines.append(f"  wire {width} {local};")
            # Variants are not mutated.
            if port != SELECT or place == 0:
                links.append(f"    .{written(port)}({written(local)})")
        lines += [f"  {instance} i{place} (", ",\n".join(links), "  );"]
    for index, (_, port) in enumerate(outputs):
        value = f"o0_{index}"
        for place, (number, _) in enumerate(choices, 1):
            value = f"chosen == {number} ? o{place}_{index} : {value}"
        lines.append(f"  assign {written(port)} = {value};")
    return "\n".join([*lines, "endmodule", ""])
