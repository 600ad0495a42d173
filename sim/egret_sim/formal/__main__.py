"""Runs every proof and prints the table: `python -m egret_sim.formal [--jobs N] [PART_OF_NAME]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from egret.errors import EgretError
from egret_sim.formal.parsers import PARSER_PROOFS
from egret_sim.formal.reader import READER_PROOFS
from egret_sim.formal.solver import Outcome, Proof, run_proof
from egret_sim.formal.streams import STREAM_PROOFS

PROOFS = (*STREAM_PROOFS, *READER_PROOFS, *PARSER_PROOFS)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as lines of text."""
    rows = [("module", "property", "method", "depth", "seconds", "result")]
    for outcome in outcomes:
        proof = outcome.proof
        rows.append(
            (
                proof.module,
                proof.claim,
                proof.method,
                str(proof.depth),
                f"{outcome.seconds:.0f}",
                outcome.status,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the proofs; return 0 when all passed."""
    parser = argparse.ArgumentParser(prog="egret_sim.formal", description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="run only proofs named so")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--folder", type=Path, default=Path("build/formal"))
    options = parser.parse_args(arguments)
    proofs = [proof for proof in PROOFS if options.part in proof.name]
    if not proofs:
        print(f"egret: no proof is named {options.part!r}", file=sys.stderr)
        return 1

    def prove(proof: Proof) -> Outcome:
        outcome = run_proof(proof, options.folder)
        print(f"{outcome.status}  {proof.module}", flush=True)
        return outcome

    try:
        # The slowest ones stand at the end: begun first, they do not run alone at last.
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(prove, reversed(proofs)))[::-1]
    except EgretError as error:
        print(f"egret: {error}", file=sys.stderr)
        return 1
    print()
    print(table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.status != "PASS"]
    for outcome in failed:
        print(
            f"egret: {outcome.proof.module}: {outcome.status}, see {outcome.folder}",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
