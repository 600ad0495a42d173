"""A grid around the digits recipe's settings, judged on the validation split alone.

Prints, for the ordinary and the rate-trained network, validation accuracy (mean over the seeds)
and code bits per weight (exp-Golomb order 0, step 2^-8). Both networks see the same augmentation,
optimiser, schedule, batch sizes, step sizes and epochs. The test split is not touched.

    python benchmarks/digits_tuning.py --seeds 3
"""

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from egret.recipes.digits import train_digits
from egret.training import TrainingOptions

EPOCHS = (100, 300)
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
LAMBDAS = (0.0, 20.0, 30.0, 45.0)
FINAL_SHARE = 10
"""The last tenth of the epochs runs without the rate term."""


def grid() -> list[TrainingOptions]:
    """Return every setting that was tried."""
    return [
        TrainingOptions(
            epochs=epochs - epochs // FINAL_SHARE,
            final_epochs=epochs // FINAL_SHARE,
            learning_rate=rate,
            lam=lam,
            eps=0.1,
        )
        for lam, epochs, rate in itertools.product(LAMBDAS, EPOCHS, LEARNING_RATES)
    ]


def evaluate(options: TrainingOptions, seeds: int) -> tuple[TrainingOptions, np.ndarray]:
    """Return the options with (seeds, 2) validation accuracies and bits per weight."""
    trained = [train_digits(seed, options=options) for seed in range(seeds)]
    return options, np.array([(t.validation_accuracy, t.bits_per_weight) for t in trained])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid and print one line for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings per setting (3)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (1)")
    parsed = parser.parse_args(arguments)
    print("  lambda  epochs  step size  validation %     bits/weight (largest)")
    with ProcessPoolExecutor(parsed.jobs) as pool:
        settings = grid()
        for options, results in pool.map(evaluate, settings, [parsed.seeds] * len(settings)):
            accuracy, bits = 100 * results[:, 0], results[:, 1]
            print(
                f"{options.lam:8g}{options.epochs + options.final_epochs:8d}"
                f"{options.learning_rate:11g}{accuracy.mean():10.2f} ± {accuracy.std():.2f}"
                f"{bits.mean():12.2f} ({bits.max():.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
