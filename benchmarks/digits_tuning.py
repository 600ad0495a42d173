"""A grid around the digits recipe's settings, judged by cross-validation without the test split.

The images outside the test split are dealt into four folds, each class in proportion. Every
setting trains four networks, each on three folds, and is judged on the fourth: as many training
images as the recipe has, and four times its validation images. Prints, for the ordinary and the
rate-trained network, the images wrong over all folds and code bits per weight (exp-Golomb order 0,
step 2^-8). Both networks see the same augmentation, optimiser, schedule, batch size, step sizes and
epochs.

    python benchmarks/digits_tuning.py --jobs 2
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from egret.recipes.digits import DigitsMLP, distort, load_digits_split
from egret.training import Split, Splits, TrainingOptions, train

FOLDS = 4
FIRST_SEED = 20
"""Fold k trains with seed 20 + k: none of the seeds that are measured on the test split."""
EPOCHS = (300, 600)
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
LAMBDAS = (0.0, 7.5, 10.0)
FINAL_SHARE = 10
"""The last tenth of the epochs runs without the rate term."""


def grid() -> list[TrainingOptions]:
    """Return every setting of the grid."""
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


def fold(number: int) -> Splits:
    """Return the images outside the test split with one fold as validation, and no test images."""
    training, validation, test = load_digits_split()
    x, y = torch.cat([training.x, validation.x]), torch.cat([training.y, validation.y])
    held = torch.empty(len(y), dtype=torch.bool)
    held[torch.argsort(y, stable=True)] = torch.arange(len(y)) % FOLDS == number
    empty = Split(test.x[:0], test.y[:0])
    return Splits(Split(x[~held], y[~held]), Split(x[held], y[held]), empty)


def evaluate(options: TrainingOptions, number: int) -> tuple[int, float]:
    """Return the images of one fold that are classified wrongly, and bits per weight."""
    torch.set_num_threads(1)
    splits = fold(number)
    trained = train(DigitsMLP, splits, options, augment=distort)
    wrong = round((1 - trained.validation_accuracy) * len(splits.validation.y))
    return wrong, trained.bits_per_weight


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid and print one line for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (1)")
    parsed = parser.parse_args(arguments)
    print("  lambda  epochs  step size  wrong (by fold)        bits/weight (largest)")
    settings = grid()
    options, numbers = zip(
        *(
            (dataclasses.replace(setting, seed=FIRST_SEED + number), number)
            for setting in settings
            for number in range(FOLDS)
        ),
        strict=True,
    )
    with ProcessPoolExecutor(parsed.jobs) as pool:
        results = pool.map(evaluate, options, numbers)
        for setting in settings:
            wrong, bits = np.array(list(itertools.islice(results, FOLDS))).T
            folds = ", ".join(f"{errors:.0f}" for errors in wrong)
            print(
                f"{setting.lam:8g}{setting.epochs + setting.final_epochs:8d}"
                f"{setting.learning_rate:11g}{wrong.sum():7.0f} ({folds})"
                f"{bits.mean():12.2f} ({bits.max():.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
