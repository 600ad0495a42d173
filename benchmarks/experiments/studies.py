"""The experiments: what each trains and measures. `report` lays out and draws what they return."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.experiments.lab import Lab, Point
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.tasks import Task
from benchmarks.experiments.training import Trained, build
from numpy.typing import NDArray
from torch import nn

from egret.ggd import Moments
from egret.pruning import MagnitudePruner
from egret.quantize import DEFAULT_STEP_LOG2, MAX_BITS, quantize
from egret.value_map import count_values

__all__ = ["STUDIES", "Study", "fit_excess"]

STEPS = (4, 5, 6, 7, 8, 9, 10)
"""n of the steps 2^-n of the paper's figure 7."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares pruned, of the paper's figure 8."""
REACH = 24
"""Histograms are kept from -REACH to REACH steps; what lies beyond is counted at the ends."""
OURS = "backslash"
"""The paper's method."""

Figures = dict[str, Any]
"""What an experiment found: JSON's types."""


@dataclass(frozen=True)
class Study:
    """An experiment.

    Parameters
    ----------
    title : str
        What it shows.
    paper : str
        Where the paper has it; empty where it does not.
    seeds : int
        Seeds that it takes, at most, unless the user names them: five where it ranks.
    run : Callable
        Does it for one task.
    """

    title: str
    paper: str
    seeds: int
    run: Callable[[Lab, Task], Figures]


def _points(*points: Point) -> list[Figures]:
    return [dataclasses.asdict(point) for point in points]


def _pair(lab: Lab, task: Task) -> list[tuple[str, float | None]]:
    """Return the ordinary training and the paper's, with the λ that validation chose."""
    return [("plain", None), (OURS, lab.chosen(task, OURS))]


def _tuning(lab: Lab, task: Task) -> Figures:
    rows = []
    methods = dict.fromkeys(method.trained_as for method in METHODS.values())
    for method in () if lab.quick else methods:
        chosen = lab.tuned(task, method)
        for epochs, rate, shortfall, payload in lab.tuning(task, method):
            rows.append(
                {
                    "method": method,
                    "epochs": epochs,
                    "learning_rate": rate,
                    "validation": shortfall if task.predicts_text else -shortfall,
                    "payload": payload,
                    "chosen": (epochs, rate) == chosen,
                }
            )
    return {"rows": rows}


def _codes(lab: Lab, task: Task) -> Figures:
    return {"points": _points(*(lab.point(task, *each) for each in _pair(lab, task)))}


def _rates(lab: Lab, task: Task) -> Figures:
    points = [lab.point(task, "plain")]
    for method in ("l0.5", "l1", "l2", OURS):
        points.append(lab.point(task, method, lab.chosen(task, method)))
    return {"points": _points(*points)}


def _steps(lab: Lab, task: Task) -> Figures:
    return {
        "points": _points(
            *(
                lab.point(task, method, value, step_log2=step)
                for method, value in _pair(lab, task)
                for step in lab.some(STEPS)
            )
        )
    }


def _pruning(lab: Lab, task: Task) -> Figures:
    def pruner(share: float) -> Callable[[nn.Module], None]:
        return lambda model: MagnitudePruner(model, share, steps=1).step()

    return {
        "points": _points(
            *(
                lab.point(task, method, value, pruned=share, change=pruner(share))
                for method, value in _pair(lab, task)
                for share in lab.some(SHARES)
            )
        )
    }


def _weights(task: Task, trained: Trained) -> NDArray[np.float64]:
    """Return all weights that a rate term charges, in one row."""
    model = build(task, trained)
    parts = [model.get_parameter(name).detach().double() for name in trained.weight_names]
    return torch.cat([part.flatten() for part in parts]).numpy()


def _histogram(weights: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    integers = quantize(weights, DEFAULT_STEP_LOG2, name="weights", bits=MAX_BITS).values
    return count_values(integers)


def _below(limits: NDArray[np.float64], shape: float, scale: float) -> NDArray[np.float64]:
    """Return the share of a generalized Gaussian that lies below each limit."""
    gamma = math.exp(0.5 * (math.lgamma(3 / shape) - math.lgamma(1 / shape))) / scale
    inner = torch.special.gammainc(
        torch.tensor(1 / shape, dtype=torch.float64),
        torch.from_numpy((gamma * np.abs(limits)) ** shape),
    ).numpy()
    return 0.5 * (1 + np.sign(limits) * inner)


def fit_excess(weights: NDArray[np.float64], shape: float, scale: float) -> float:
    """Return the bits per weight that a code made for a fitted distribution loses.

    Parameters
    ----------
    weights : ndarray of float64, shape (n,)
        Weights, which are rounded to steps of 2^-8.
    shape, scale : float
        ν and σ of the generalized Gaussian; ν = 2 is the Gaussian.

    Returns
    -------
    float
        Kullback-Leibler divergence of the rounded weights' frequencies from what the distribution
        gives to each step, in bits.
    """
    values, counts = _histogram(weights)
    step = 2.0**-DEFAULT_STEP_LOG2
    middle = np.abs(values.astype(np.float64))
    # Differences on the positive side, whose far end loses digits, are taken on the negative one.
    expected = _below(-(middle - 0.5) * step, shape, scale) - _below(
        -(middle + 0.5) * step, shape, scale
    )
    found = counts / counts.sum()
    return float((found * np.log2(found / np.maximum(expected, 1e-300))).sum())


def _shares(weights: NDArray[np.float64]) -> list[float]:
    values, counts = _histogram(weights)
    places = np.clip(values, -REACH, REACH) + REACH
    return (np.bincount(places, counts, 2 * REACH + 1) / counts.sum()).tolist()


def _fits(lab: Lab, task: Task) -> Figures:
    rows = []
    for method, value in _pair(lab, task):
        for seed in lab.seeds:
            weights = _weights(task, lab.trained(lab.settings(task, method, seed, value)))
            moments = Moments.of(weights)
            assert moments.shape is not None
            rows.append(
                {
                    "method": method,
                    "value": value,
                    "seed": seed,
                    "shape": moments.shape,
                    "scale": moments.scale,
                    "excess": fit_excess(weights, moments.shape, moments.scale),
                    "gaussian_excess": fit_excess(weights, 2.0, moments.scale),
                    "histogram": _shares(weights),
                }
            )
    return {"rows": rows}


def _course(lab: Lab, task: Task) -> Figures:
    rows = []
    for method, value in _pair(lab, task):
        for seed in lab.seeds:
            trained = lab.trained(lab.settings(task, method, seed, value))
            history = [dataclasses.asdict(record) for record in trained.history]
            rows.append({"method": method, "value": value, "seed": seed, "history": history})
    return {"rows": rows}


def _lambdas(lab: Lab, task: Task) -> Figures:
    return {"points": _points(lab.point(task, "plain"), *lab.curve(task, OURS))}


def _histograms(lab: Lab, task: Task) -> Figures:
    rows = []
    for method, value in [("plain", None), *((OURS, value) for value in lab.values(task, OURS))]:
        trained = lab.trained(lab.settings(task, method, lab.seeds[0], value))
        rows.append(
            {
                "method": method,
                "value": value,
                "seed": lab.seeds[0],
                "histogram": _shares(_weights(task, trained)),
            }
        )
    return {"rows": rows}


def _curves(lab: Lab, task: Task) -> Figures:
    methods = [name for name in METHODS if name not in ("plain", "l2", "l0.5")]
    return {
        "points": _points(
            lab.point(task, "plain"),
            *(point for method in methods for point in lab.curve(task, method)),
        )
    }


def _targets(lab: Lab, task: Task) -> Figures:
    free = lab.freed()
    points = free.point(task, "plain"), free.point(task, "egret", free.chosen_target(task, "egret"))
    lab.used |= free.used
    return {
        "points": _points(*points),
        "most_bits": task.most_bits,
        "most_golomb_bits": task.most_golomb_bits,
        "tolerance": task.tolerance,
    }


STUDIES = {
    "tuning": Study("Epochs and step sizes, chosen on the validation split", "", 1, _tuning),
    "codes": Study("Code lengths and quality, ordinary and BackSlash", "tables 4 and 5", 3, _codes),
    "orders": Study("Orders of the exp-Golomb code", "table 3", 3, _codes),
    "rates": Study("The rate against L0.5, L1 and L2", "table 6", 5, _rates),
    "steps": Study("Quality over the quantisation step", "figure 7", 3, _steps),
    "pruning": Study("Quality over pruning after training", "figure 8", 3, _pruning),
    "fits": Study("Generalized Gaussian against Gaussian", "figure 1", 3, _fits),
    "course": Study("Cost and shape over a training", "figures 2 and 3", 3, _course),
    "lambdas": Study("Code lengths and quality over λ", "figures 4 and 5", 3, _lambdas),
    "histograms": Study("Histograms over λ", "figure 6", 1, _histograms),
    "curves": Study("Quality over size: what a user would do instead", "", 5, _curves),
    "targets": Study("Targets", "", 5, _targets),
}
"""The experiments, by name, in the order of the page."""
