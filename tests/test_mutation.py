"""The mutation campaign itself: what it calls caught is, and what it does not is not."""

import random
from pathlib import Path

import numpy as np
import pytest
from tests import test_hw_accelerator
from tests.mutation import __main__ as command
from tests.mutation.campaign import Case, find_caught, suite_cases
from tests.mutation.handwritten import LOGIC_MISTAKES, MICROCODE_MISTAKES
from tests.mutation.mutants import (
    Mistake,
    Mutant,
    changed_root,
    is_equal,
    mutated_verilog,
    prepare,
    sample,
    unlike_modules,
    variant_verilog,
)
from tests.mutation.player import Player
from tests.test_fast import STAND_IN
from tests.test_hw_accelerator import SETS

import egret_hw
from egret.errors import EgretError
from egret.params import AcceleratorParams
from egret_hw.rtl import top_name
from egret_sim.benches.accelerator import Step

SMALL = AcceleratorParams(
    name="mutated", lanes=1, parser_bits=8, parser_cut=4, bus_bits=32, batch=1
)
TOP = top_name(SMALL)
# The stand-in of the harness' test, with a module below it through which its results go.
LINE = "      m_axis_out_tdata <= mixed;\n"
INSTANCE = """  wire [31:0] turned;
  NAME_turn  turn (
    .i(mixed),
    .o(turned)
  );
endmodule

module NAME_turn(i, o);
  input [31:0] i;
  wire [31:0] i;
  output [31:0] o;
  wire [31:0] o;
  assign o = ~i;
endmodule
"""
EQUAL, WRONG = 60_000, 60_001
RNG = random.Random(1)
# Neither 0xFE nor 0xFF is a word's first byte.
WORDS = [RNG.getrandbits(24) << 8 | RNG.randrange(0xFE) for _ in range(20)]
COLUMNS = [RNG.getrandbits(8) for _ in range(20)]


def stand_in() -> str:
    text = STAND_IN.lstrip().replace("wire go", "wire [31:0] turned;\n  wire go", 1)
    text = text.replace(LINE, LINE.replace("mixed", "turned"))
    body = text.rsplit("endmodule", 1)[0] + INSTANCE.split("\n", 1)[1]
    return body.replace("NAME", TOP).replace("BUS", "32").replace("ACT", "8")


def steps() -> list[Step]:
    return [
        Step("activations", bytes(COLUMNS)),
        Step("weights", np.array(WORDS, "<u4").tobytes()),
        Step("expect", count=1),
    ]


def expected() -> list[int]:
    mixed = [(word ^ column) & 0xFFFFFFFF for word, column in zip(WORDS, COLUMNS, strict=True)]
    return np.array([~np.uint32(value) for value in mixed]).view("<i4").tolist()


def check(params: AcceleratorParams, wanted: list[int]) -> None:
    recording = test_hw_accelerator.play(params, steps(), timeout=200)
    assert not recording.locked_up
    assert recording.frames[0].values.tolist() == wanted


def test_a_bad_mutant_is_caught_and_an_equal_one_is_not(tmp_path: Path) -> None:
    design = stand_in()
    variants = {
        EQUAL: design.replace("assign o = ~i;", "assign o = i ^ 32'hffffffff;"),
        WRONG: design.replace("assign o = ~i;", "assign o = ~i | 32'd1;"),
    }
    prepare(design, TOP, tmp_path)
    mutants = sample(tmp_path, TOP, 12, 1)
    assert mutants == sample(tmp_path, TOP, 12, 1)
    assert {mutant.module for mutant in mutants} == {"top", "turn"}
    turned = [mutant for mutant in mutants if mutant.module == "turn"]
    assert "assign o = ~i;" in turned[0].key
    player = Player(SMALL, mutated_verilog(tmp_path, TOP, mutants, variants))
    numbers = [mutant.number for mutant in turned] + [EQUAL, WRONG]
    case = Case(check, {"params": SMALL, "wanted": expected()})
    caught, played = find_caught(player, case, numbers)
    assert played.ending == "played"
    assert set(caught) == set(numbers) - {EQUAL}
    assert caught[WRONG].startswith("AssertionError")
    with pytest.raises(EgretError, match=r"^check\[.*\]: fails without a mutant: AssertionError"):
        find_caught(player, Case(check, {"params": SMALL, "wanted": [0] * 20}), [])


EQUALS = """
module egret_equals_part(input clk, input [3:0] a, b, s, output reg [3:0] o);
  reg [3:0] held;
  always @(posedge clk) begin
    held <= (a & s) | (b & s & ~s);
    o <= held;
  end
endmodule
"""


def test_equal_mutants_are_proved_so(tmp_path: Path) -> None:
    prepare(EQUALS, "egret_equals_part", tmp_path)
    lines = (tmp_path / "prepared.il").read_text().splitlines()
    cells = [line.split()[-1] for line in lines if "cell $and" in line]
    assert len(cells) == 3
    place = "-port A -portbit 1 -module egret_equals_part"
    mutants = [Mutant(1, "part", "", f"mutate -mode inv {place} -cell {cell}") for cell in cells]
    # Whatever b & s is, what follows makes 0 of it.
    assert sum(is_equal(tmp_path, "egret_equals", mutant) for mutant in mutants) == 1


def test_changes_are_copied_from_the_lowest_module_that_keeps_its_ports() -> None:
    design = stand_in()
    changed = design.replace("assign o = ~i;", "assign o = i;")
    assert changed_root(design, changed, TOP) == (f"{TOP}_turn", [f"{TOP}_turn"])
    with pytest.raises(EgretError, match="the variant is the design itself"):
        changed_root(design, design, TOP)
    with pytest.raises(EgretError, match="changes the top itself"):
        changed_root(design, design.replace("12'd0", "12'd1").replace("99", "98"), TOP)
    assert unlike_modules(changed, TOP, design, TOP) == {"turn"}


def test_a_mistake_that_is_no_more_is_an_error(tmp_path: Path) -> None:
    gone = Mistake("gone", "gearbox.py", "no such text", "")
    with pytest.raises(EgretError, match=r"^mistake 'gone': found its text 0 times in gearbox.py"):
        variant_verilog([gone], SMALL, tmp_path)


@pytest.mark.parametrize(
    "mistake", [*MICROCODE_MISTAKES, *LOGIC_MISTAKES], ids=lambda mistake: mistake.name
)
def test_mistakes_fit_the_sources(mistake: Mistake) -> None:
    text = (Path(egret_hw.__file__).parent / mistake.file).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1, f"tests/mutation/handwritten.py: {mistake.name}"


def test_the_tests_are_the_suites_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [case.name for case in suite_cases(SETS[2])]
    assert "test_corners" in names
    assert "test_random_matrices[bursts]" in names
    assert "test_reset_and_clear_in_any_cycle_of_a_matrix[reset]" not in names
    monkeypatch.setattr(test_hw_accelerator, "test_new", lambda: None, raising=False)
    with pytest.raises(EgretError, match="test_new: expected as in"):
        suite_cases(SETS[2])


def test_survivors_need_explanations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "survivors.toml"
    file.write_text(
        '[[survivor]]\naccelerator = "a"\nkey = "known"\nreason = "equal"\n'
        '[[survivor]]\naccelerator = "a"\nkey = "old"\nreason = "equal"\n'
        '[[survivor]]\naccelerator = "a"\nkey = "same"\nreason = "Equivalent: by the contract"\n'
    )
    monkeypatch.setattr(command, "EXPLANATIONS", file)
    verdicts = [
        command.Verdict("a", "m", "known", False),
        command.Verdict("a", "m", "caught", False, "test_x", "AssertionError"),
        command.Verdict("a", "m", "unknown", True),
        command.Verdict("a", "m", "same", False),
        command.Verdict("a", "m", "proved", False, explained=command.PROVED),
    ]
    assert command.explain(verdicts) == ["a: old"]
    reasons = ["equal", "", "", "Equivalent: by the contract", command.PROVED]
    assert [verdict.explained for verdict in verdicts] == reasons
    assert command.score(verdicts) == pytest.approx(1 / 3)
    page = command.report(verdicts, 3, 1000)
    assert "Mutants: 5 (4 of Yosys, seed 3, 1 mistakes written by hand). Caught: 1" in page
    assert "Survived: 4, of which 2 are equivalent (1 proved by Yosys)" in page
    assert "Caught of those that are not: 33.3%" in page
    assert "| a | `unknown` | **none** |" in page
