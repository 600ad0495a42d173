"""Fuzz the reader, guided by coverage: `make fuzz`.

Every input is read as a container and as a codebook, by Egret and by the independent decoder. They
must refuse the same and find the same. Another disagreement, any error but an `EgretError`, and
more than five seconds or two gigabytes for a small file are findings. With `NUMBA_DISABLE_JIT=1`
the compiled loops run as plain Python and are covered too.
"""

import os
import random
import sys
from pathlib import Path

import atheris

PLAIN = os.environ.get("NUMBA_DISABLE_JIT") == "1"
# Compiled functions cannot be instrumented.
COMPILED = ("code_search", "codebook", "codec", "crc", "golomb", "intrinsics", "quantize")
NOWHERE = Path("fuzzed.egret")
# The independent decoder takes microseconds for an element.
MAX_ELEMENTS = 3000


def main() -> None:
    if PLAIN:
        from tests.fuzz import plain

        plain.install()
    spared = [] if PLAIN else [f"egret.{name}" for name in COMPILED]
    with atheris.instrument_imports(include=["egret"], exclude=spared):
        from tests.judge import judge, judge_book
    if PLAIN:
        plain.return_python_numbers()
    from tests.fuzz.mutator import mutated
    from tests.handmade import random_container

    def read(data: bytes) -> None:
        judge(NOWHERE, data, max_elements=MAX_ELEMENTS)
        judge_book(data)

    # Compiling takes longer than an input may.
    for seed in range(0 if PLAIN else 60):
        read(random_container(random.Random(seed))[0].file())

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return mutated(data, rng, lambda content: atheris.Mutate(content, max_size))[:max_size]

    atheris.Setup(sys.argv, read, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
