"""What the environment asks of a run: another seed, or the whole lists.

`EGRET_SEED`, which `make sim SEED=…` sets: without it every test plays what it always plays; with
it, every stream, pause and choice of the hardware's benches is another, and the same again for the
same seed. `EGRET_FULL=1`, which `make sim` and `make faults` set: lists that are cut short for
`make test` are played whole, on all of the Verilog in hw/verilog.
"""

import os
import random
from pathlib import Path

import numpy as np

SEED = int(os.environ.get("EGRET_SEED") or 0)
IS_FULL = os.environ.get("EGRET_FULL", "") == "1"
KEPT = Path(__file__).parent.parent / "hw" / "verilog"
_SALT = f" of seed {SEED}" if SEED else ""


def seeded(*names: object) -> random.Random:
    """Return a generator of random numbers for what these names stand for."""
    return random.Random(" ".join(map(str, names)) + _SALT)


def generator(number: int) -> np.random.Generator:
    """Return NumPy's generator for a test's number."""
    return np.random.default_rng([number, SEED] if SEED else number)


def pause_seed(number: int) -> int:
    """Return the seed of a bench's pauses for a test's number."""
    return number + 1_000_003 * SEED
