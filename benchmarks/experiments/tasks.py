"""What is trained on what, for how long, and what it shall come to."""

from dataclasses import dataclass
from functools import partial

from benchmarks.experiments.data import drop_words
from benchmarks.experiments.models import ARCHITECTURES, Architecture

from egret.recipes.digits import distort
from egret.training import Augment

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with a network and the settings that all its trainings share.

    Parameters
    ----------
    name, title : str
        Name on the command line, and in tables.
    data : str
        Of `benchmarks.experiments.data.DATA`.
    network : str
        Of `benchmarks.experiments.models.ARCHITECTURES`.
    epochs : tuple of int
        Passes over the training data to choose from.
    learning_rates : tuple of float
        Step sizes to choose from, for each method by itself.
    target_epochs : tuple of int
        Passes that the networks of the targets choose from, all of them; `epochs` where empty.
    more_rates : tuple of float
        Step sizes that they try besides.
    batch_size : int
        Samples per step.
    weight_decay : float
        AdamW's.
    augment : Callable, optional
        As for `egret.training.train`.
    augment_from : int
        Trainings of fewer passes than these see the samples as they are.
    predicts_text : bool
        Whether quality is the cross-entropy of the next character, in nats; else accuracy, in per
        cent.
    most_bits : float or None
        Limit of the payload in bits per weight, at `tolerance`.
    most_golomb_bits : float or None
        Limit of exp-Golomb code bits of order 0 per weight, in steps of 2^-8.
    """

    name: str
    title: str
    data: str
    network: str
    epochs: tuple[int, ...]
    learning_rates: tuple[float, ...]
    target_epochs: tuple[int, ...] = ()
    more_rates: tuple[float, ...] = ()
    batch_size: int = 64
    weight_decay: float = 0.0
    augment: Augment | None = None
    augment_from: int = 0
    predicts_text: bool = False
    most_bits: float | None = None
    most_golomb_bits: float | None = None

    @property
    def architecture(self) -> Architecture:
        """The network."""
        return ARCHITECTURES[self.network]

    def augmentation(self, epochs: int) -> Augment | None:
        """Return what changes the samples of a training of so many passes."""
        return None if epochs < self.augment_from else self.augment

    @property
    def tolerance(self) -> float:
        """How much worse than the plain network's the quality may be: points, or nats."""
        return 0.03 if self.predicts_text else 0.3

    @property
    def unit(self) -> str:
        """Name of the quality in tables."""
        return "nats" if self.predicts_text else "%"

    def shortfall(self, found: float, plain: float) -> float:
        """Return by how much a quality is worse than another, in points or nats."""
        return found - plain if self.predicts_text else plain - found


_ALL = [
    Task(
        name="digits",
        title="digits, MLP",
        data="digits",
        network="digits-mlp",
        epochs=(300, 600),
        learning_rates=(1e-3, 2e-3, 4e-3, 8e-3),
        more_rates=(16e-3,),
        augment=distort,
        most_bits=0.6,
        most_golomb_bits=2.2,
    ),
    Task(
        name="lenet",
        title="MNIST-10k, LeNet-300-100",
        data="mnist",
        network="lenet-300-100",
        epochs=(30,),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        target_epochs=(60, 120),
        more_rates=(8e-3,),
        augment=partial(distort, strength=0.5),
        augment_from=120,
        most_bits=0.25,
        most_golomb_bits=1.5,
    ),
    Task(
        name="cnn",
        title="MNIST-10k, CNN",
        data="mnist",
        network="cnn",
        epochs=(20, 40),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        target_epochs=(40,),
        more_rates=(8e-3,),
        most_bits=0.2,
        most_golomb_bits=1.8,
    ),
    Task(
        name="ag-news",
        title="AG-News, transformer",
        data="ag_news",
        network="news-transformer",
        # The network learns these few texts by heart: 10 epochs of the same texts did worse where
        # they were tried.
        epochs=(3,),
        learning_rates=(1e-3, 2e-3, 4e-3),
        target_epochs=(3, 8),
        more_rates=(5e-4, 8e-3),
        augment=drop_words,
        augment_from=8,
        batch_size=16,
        weight_decay=0.01,
        most_bits=0.9,
        most_golomb_bits=2.6,
    ),
    Task(
        name="reviews",
        title="film reviews, transformer",
        data="reviews",
        network="review-transformer",
        epochs=(3,),
        learning_rates=(1e-3, 2e-3, 4e-3),
        batch_size=16,
        weight_decay=0.01,
    ),
    Task(
        name="sms",
        title="SMS spam, transformer",
        data="sms",
        network="sms-transformer",
        epochs=(3,),
        learning_rates=(1e-3, 2e-3, 4e-3),
        batch_size=16,
        weight_decay=0.01,
    ),
    Task(
        name="gpt",
        title="tinyshakespeare, GPT",
        data="shakespeare",
        network="character-gpt",
        epochs=(3,),
        learning_rates=(2e-3,),
        # Of 8, 16 and 32 in three epochs the best for both networks where they were tried.
        batch_size=8,
        weight_decay=0.01,
        predicts_text=True,
        most_bits=2.0,
    ),
]
TASKS = {task.name: task for task in _ALL}
"""The tasks, by name, in the order of the tables."""
