"""Runs the suite's own tests of the accelerator on mutants, and finds out which of them fail.

A test runs as it is up to where it plays its script. There a process is forked for each mutant,
which goes on with what that mutant did: the test's own comparisons judge it. Only the player is
another one than in the suite, a compiled program.
"""

import inspect
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tests import test_hw_accelerator
from tests.mutation.player import NO_LIMIT, Played, Player

from egret.errors import EgretError
from egret.params import AcceleratorParams
from egret_sim.benches.accelerator import Job, Recording, Step

__all__ = ["Case", "find_caught", "suite_cases"]

_SLACK = 4
"""A mutant may take so many times the design's cycles."""
_PATIENCE = 20_000
"""Cycles to wait for something at most: enough for the design; many mutants lock up."""


@dataclass(frozen=True)
class Case:
    """A test with its arguments."""

    test: Callable[..., None]
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The test's name, and its arguments but for the accelerator."""
        others = [str(value) for key, value in self.arguments.items() if key != "params"]
        return self.test.__name__ + (f"[{', '.join(others)}]" if others else "")


# Shortest first: most mutants are gone by then.
_TESTS = (
    "test_corners",
    "test_registers_of_the_top",
    "test_every_multiplier_bit_and_shift",
    "test_packer_against_golden_and_plain_integers",
    "test_weights_wait_for_activations",
    "test_random_matrices",
    "test_wrong_numbers_of_activations_are_errors",
    "test_matrices_before_an_error_are_finished",
    "test_errors_of_the_second_of_two_matrices",
    "test_sizes_beyond_the_limits_are_errors",
    "test_the_longest_codewords_and_longer_ones",
    "test_a_code_waits_until_no_matrix_uses_its_bank",
    "test_every_kind_of_code_from_matrix_to_matrix",
    "test_codes_that_are_wrong_in_themselves",
    "test_clear_while_sums_are_on_their_way",
    "test_clear_while_results_are_kept",
    "test_every_bit_of_a_matrix_packet_flipped_is_an_error",
    "test_every_bit_of_a_load_packet_flipped_is_an_error",
    "test_bits_flipped_of_microcode",
    "test_wrong_lengths_are_errors",
    "test_nothing_is_looked_at_between_an_error_and_clear",
    "test_reset_and_clear_in_any_cycle_of_a_matrix",
    "test_reset_and_clear_amid_everything",
    "test_clear_amid_a_long_activation_packet",
    "test_bits_flipped_with_pauses",
    "test_nothing_is_sent_before_the_crc_word_is_right",
    "test_every_matrix_has_its_strobe",
)
# These play several scripts, or run on another accelerator or Verilog only.
_OTHERS = (
    "test_a_code_that_was_not_loaded_is_an_error",
    "test_the_padding_of_the_crc_word_counts",
    "test_verilog_of_the_repository",
)


def _choices(test: Callable[..., None]) -> list[dict[str, Any]]:
    """Return the sets of arguments that the suite gives a test."""
    choices: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            name, values = mark.args[:2]
            choices = [{**choice, name: value} for choice in choices for value in values]
    return choices


def suite_cases(params: AcceleratorParams) -> list[Case]:
    """Return the tests of the accelerator that the suite runs with these parameters.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.

    Returns
    -------
    list of Case

    Raises
    ------
    EgretError
        A test is no more, or a new one is not listed here.
    """
    found = {
        name
        for name, each in vars(test_hw_accelerator).items()
        if name.startswith("test_") and inspect.isfunction(each)
    }
    odd = sorted(found ^ {*_TESTS, *_OTHERS})
    if odd:
        raise EgretError(f"tests/test_hw_accelerator.py: {odd[0]}: expected as in {__name__}")
    cases = []
    for name in _TESTS:
        test = getattr(test_hw_accelerator, name)
        for arguments in _choices(test):
            own = arguments.get("params", test_hw_accelerator.FAULTY)
            if own == params:
                cases.append(Case(test, arguments))
    return cases


def _judge(resume: Callable[[], None]) -> str:
    """Go on with a test; return why it failed, or nothing."""
    try:
        resume()
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {text[0]}"
    return ""


def find_caught(
    player: Player, case: Case, mutants: Sequence[int]
) -> tuple[dict[int, str], Played]:
    """Run a test on mutants.

    Parameters
    ----------
    player : Player
        The design and its mutants.
    case : Case
        The test.
    mutants : sequence of int
        Those to try.

    Returns
    -------
    caught : dict of int to str
        Mutants for which the test fails, and why.
    played : Played
        What the design itself did.

    Raises
    ------
    EgretError
        The test fails without a mutant, or plays no script.
    """
    played: list[Played] = []
    why_pipe: list[int] = []

    def play(
        params: AcceleratorParams,
        steps: list[Step],
        *,
        pause: str = "none",
        seed: int = 1,
        timeout: int = 40_000,
    ) -> Recording:
        if played:
            raise EgretError(f"{case.name}: it plays a second script, expected one")
        if params != player.params:
            raise EgretError(f"{case.name}: found {params.name}, expected {player.params.name}")
        timeout = min(timeout, _PATIENCE)
        job = Job(steps, pause=pause, seed=seed, timeout=timeout)
        played.append(player.play(job, [0])[0])
        limit = min(NO_LIMIT, _SLACK * played[0].recording.cycles + 4 * timeout)
        outcomes = player.play(job, list(mutants), limit=limit)
        # The design itself comes last, so that a test that fails for it fails here.
        for number in (*mutants, 0):
            outcome = played[0] if number == 0 else outcomes[number]
            odd = outcome.ending in ("unstable", "not settled")
            if number == 0:
                break
            if odd:
                caught[number] = f"the output is {outcome.ending}"
                continue
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                why_pipe.append(writing)
                return outcome.recording
            os.close(writing)
            with os.fdopen(reading, "rb") as answer:
                why = pickle.loads(answer.read())
            os.waitpid(child, 0)
            if why:
                caught[number] = why
        if odd:
            raise EgretError(f"{case.name}: the design's output is {outcome.ending}")
        return outcome.recording

    caught: dict[int, str] = {}
    with patch.object(test_hw_accelerator, "play", play):
        why = _judge(lambda: case.test(**case.arguments))
        if why_pipe:
            # A forked process: what it found is all that it leaves.
            with os.fdopen(why_pipe[0], "wb") as answer:
                answer.write(pickle.dumps(why))
            os._exit(0)
    if why:
        raise EgretError(f"{case.name}: fails without a mutant: {why}")
    if not played:
        raise EgretError(f"{case.name}: plays no script")
    return caught, played[0]
