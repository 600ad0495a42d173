"""Streams millions of weights through the whole accelerator's Verilog and compares every result.

The Verilog is that of hw/verilog, simulated with Python off the clock edge (`egret_sim.fast`). What
is streamed: the digits recipe's two networks, trained and pruned, and matrices drawn from
generalized Gaussian distributions of several shapes, entropies and shares of zeros. Each is
packed as a host would, its code chosen by cost, and every result is compared with NumPy's product
of the same integers.

    python -m benchmarks.sim_long
    python -m benchmarks.sim_long --preset l-onchip --weights 5000000 --seed 7
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.hardware import SCHEME, check_results, expected_results
from benchmarks.workloads import ENTROPIES, SHAPES, SHARES, digits_models, draw_weights, prune
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.image import build_matrices
from egret.params import PRESETS
from egret_hw.rtl import top_name
from egret_sim.fast import FastModel, Phase

__all__ = ["Totals", "main", "play", "sources"]

KEPT = Path(__file__).parent.parent / "hw" / "verilog"
WEIGHTS = 20_000_000
"""Weights that a run streams, at least."""
PRESET = "m-ddr3"
SIDE = 1024
"""Rows and columns of a drawn matrix: as many as the presets hold."""
PAUSES = ((0.0, 0.0, 0.0), (0.3, 0.3, 0.3))
"""Shares of idle cycles of both inputs and of the output; most runs are at full speed."""
_LEAST_WEIGHTS = 2048
_LIMIT = 127


@dataclass
class Totals:
    """What was played so far: weights, those that are zero, clock cycles, results, seconds."""

    weights: int = 0
    zeros: int = 0
    cycles: int = 0
    results: int = 0
    seconds: float = 0.0


def sources(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, NDArray[np.int32]]]]:
    """Yield names and matrices: trained ones first, then drawn ones without end."""
    for model in digits_models():
        for share in SHARES:
            coded = model.case(SCHEME, share).coded
            matrices = {
                name: tensor.values.reshape(tensor.values.shape[0], -1)
                for name, tensor in coded.items()
                if tensor.values.size >= _LEAST_WEIGHTS
            }
            yield f"{model.name}, {100 * share:g} % pruned", matrices
    while True:
        for shape in SHAPES:
            drawn = draw_weights(SIDE * SIDE, shape, ENTROPIES)
            for entropy, values in zip(ENTROPIES, drawn, strict=True):
                share = float(rng.choice(SHARES))
                rows, columns = rng.integers(SIDE // 2, SIDE + 1, 2)
                # Other weights at every visit, of the same distribution.
                mixed = rng.permutation(prune(values, share).reshape(-1))[: rows * columns]
                whole = np.rint(mixed).astype(np.int32).clip(-_LIMIT, _LIMIT)
                name = f"shape {shape:g}, {entropy:g} bits, {100 * share:g} % pruned"
                yield name, {"drawn": whole.reshape(rows, columns)}


def play(
    model: FastModel,
    name: str,
    matrices: Mapping[str, NDArray[np.int32]],
    totals: Totals,
    rng: np.random.Generator,
) -> None:
    """Stream matrices and compare; what was played is added to the totals.

    Raises
    ------
    EgretError
        A result is wrong, or the accelerator stopped.
    """
    pauses = PAUSES[int(rng.random() < 0.2)]
    seed = int(rng.integers(1, 1 << 16))
    image = build_matrices(matrices, model.params)
    activations, results = expected_results(image, matrices, rng)
    packets = [packet.data for packet in (*image.setup, *image.packets)]
    phase = Phase(packets, activations, results=len(results), matrices=len(image.matrices))
    began = time.monotonic()
    (record,) = model.run([phase], pauses=pauses, seed=seed)
    totals.seconds += time.monotonic() - began
    what = f"{name}, pauses {pauses}, seed {seed}"
    check_results(record, results, [what] * len(results))
    totals.results += sum(values.size for values in results)
    totals.cycles += record.cycles
    totals.weights += sum(values.size for values in matrices.values())
    totals.zeros += sum(int((values == 0).sum()) for values in matrices.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Stream, print the counts, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.sim_long",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default=PRESET)
    parser.add_argument("--weights", type=int, default=WEIGHTS, help=f"at least ({WEIGHTS:,})")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (1)")
    parsed = parser.parse_args(arguments)
    rng = np.random.default_rng(parsed.seed)
    top = top_name(PRESETS[parsed.preset])
    print(f"sim-long: {top}.v of hw/verilog, seed {parsed.seed}", flush=True)
    totals = Totals()
    began = time.monotonic()
    try:
        verilog = (KEPT / top / f"{top}.v").read_text(encoding="utf-8")
        model = FastModel(PRESETS[parsed.preset], verilog)
        for name, matrices in sources(rng):
            play(model, name, matrices, totals, rng)
            print(f"  {totals.weights:12,} weights, {totals.cycles:11,} cycles: {name}", flush=True)
            if totals.weights >= parsed.weights:
                break
    except EgretError as error:
        print(f"sim-long: {error}", file=sys.stderr)
        return 1
    print(
        f"sim-long: {totals.weights:,} weights ({totals.zeros / totals.weights:.0%} zero) in "
        f"{totals.cycles:,} cycles, {totals.results:,} results equal to NumPy's; "
        f"{totals.cycles / totals.seconds:,.0f} cycles/s, "
        f"{time.monotonic() - began:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
