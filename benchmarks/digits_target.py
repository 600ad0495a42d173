"""The digits network at 0.6 bits a weight, beside the ordinary one, over several seeds.

For each seed two networks are trained: an ordinary one, and ours, to the recipe's target (`egret
train digits`). Both see the same augmentation, optimiser, schedule, batch size and number of
epochs; each has the step size that is best for it on the validation split. Accuracies are on the
test split, which nothing was chosen on; ours is that of the model as the packed file gives it
back, and that of the integers that the hardware computes. Bits are those of codewords, codes and
maps, per weight; the file has biases, headers and checksums too. Differences are paired: ours less
the ordinary network of the same seed.

    python -m benchmarks.digits_target --seeds 5 --json docs/results/digits-target.json
"""

import argparse
import dataclasses
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.digits_seeds import integer_accuracy
from benchmarks.seed_table import format_header, format_row, mean_and_deviation

from egret.files import write_text
from egret.recipes.digits import (
    PLAIN_TARGET_OPTIONS,
    TARGET_OPTIONS,
    load_digits_split,
    train_digits,
)
from egret.training import TrainingOptions, accuracy, save_training


@dataclass(frozen=True)
class SeedResult:
    """Figures of one seed; accuracies in per cent of the test split, sizes in bits per weight."""

    seed: int
    plain: float
    packed: float
    integer: float
    payload_bits: float
    file_bytes: int
    entropy_target: float
    validation_plain: float
    validation_packed: float

    @property
    def difference(self) -> float:
        """Ours less the ordinary network, in points."""
        return self.packed - self.plain

    @property
    def integer_difference(self) -> float:
        """Our integers less the ordinary network, in points."""
        return self.integer - self.plain


def run_seed(seed: int, epochs: int | None = None) -> SeedResult:
    """Train both networks of one seed and measure them.

    Parameters
    ----------
    seed : int
        Seed of both.
    epochs : int, optional
        Passes over the data, in place of the recipes'.
    """

    def options(recipe: TrainingOptions) -> TrainingOptions:
        return recipe if epochs is None else dataclasses.replace(recipe, epochs=epochs)

    splits = load_digits_split()
    plain = train_digits(seed, options=options(PLAIN_TARGET_OPTIONS))
    ours = train_digits(seed, options=options(TARGET_OPTIONS))
    with tempfile.TemporaryDirectory() as folder:
        saved = save_training(ours, splits, folder)
    assert TARGET_OPTIONS.target_bits is not None
    assert saved.network is not None
    return SeedResult(
        seed=seed,
        plain=100 * accuracy(plain.model, splits.test),
        packed=100 * saved.packed.accuracy["test"],
        integer=100 * integer_accuracy(saved.network, splits.test),
        payload_bits=saved.packed.payload_bits,
        file_bytes=saved.packed.file_bytes,
        entropy_target=TARGET_OPTIONS.target_bits,
        validation_plain=100 * plain.validation_accuracy,
        validation_packed=100 * saved.packed.accuracy["validation"],
    )


_COLUMNS = {
    "plain": "plain %",
    "packed": "packed %",
    "difference": "- plain",
    "integer": "integer %",
    "integer_difference": "int-plain",
    "payload_bits": "bits",
    "file_bytes": "file B",
}


def _figures(result: SeedResult) -> dict[str, float]:
    return {name: getattr(result, name) for name in _COLUMNS}


def summary(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Return means and standard deviations over the seeds, for JSON."""
    mean, deviation = mean_and_deviation([_figures(result) for result in results])
    return {
        "options": dataclasses.asdict(TARGET_OPTIONS),
        "plain_options": dataclasses.asdict(PLAIN_TARGET_OPTIONS),
        "seeds": [dataclasses.asdict(result) for result in results],
        "mean": mean,
        "sd": deviation,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 (5)")
    parser.add_argument("--epochs", type=int, help="passes over the data (the recipes')")
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at once (1)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parsed = parser.parse_args(arguments)
    print(format_header(_COLUMNS))
    results = []
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, mp_context=context) as pool:
        for result in pool.map(run_seed, range(parsed.seeds), [parsed.epochs] * parsed.seeds):
            results.append(result)
            print(format_row(result.seed, _COLUMNS, _figures(result)), flush=True)
            figures = summary(results)
            if parsed.json is not None:
                write_text(parsed.json, json.dumps(figures, indent=2) + "\n")
    for label in ("mean", "sd"):
        print(format_row(label, _COLUMNS, figures[label]))


if __name__ == "__main__":
    main()
