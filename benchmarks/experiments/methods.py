"""The methods that are compared: what each does in a training step."""

import ast
import functools
import hashlib
import importlib
import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egret.pruning import MagnitudePruner
from egret.qat import StraightThrough
from egret.rate import RateRegularizer

__all__ = ["METHODS", "Method", "Rule", "code_digest"]

FINAL_SHARE = 0.1
"""Share of the steps, at the end, that a rate in the loss is left out for (arXiv 2506.00486)."""


class Rule:
    """What a method does in each step of a training; this one trains an ordinary network."""

    sources: tuple[str, ...] = ()
    """Modules, besides its own class, that decide what it does."""
    lam = 0.0

    def __init__(self, model: nn.Module, value: float, steps: int) -> None:
        """Prepare for a training of so many steps; `value` is that of the method's knob."""

    def steps(self) -> dict[str, int]:
        """Return n of the steps 2^-n that weights are trained for, by parameter; else 2^-8."""
        return {}

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context of the forward and the backward pass, and of evaluation."""
        return nullcontext()

    def loss(self) -> torch.Tensor | None:
        """Return what is added to the loss."""
        return None

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what comes after the optimiser's step."""

    def finish(self) -> None:
        """Do what comes after the last step."""


class _InLoss(Rule):
    """A rate, or a norm, in the loss, but for the final steps."""

    sources = ("egret.rate", "egret.ggd")

    def __init__(self, model: nn.Module, lam: float, steps: int, nu: float | str) -> None:
        self._regularizer = RateRegularizer(model, lam, nu=nu, every=1)
        self._left = round((1 - FINAL_SHARE) * steps)
        self.lam = lam

    def loss(self) -> torch.Tensor | None:
        self._left -= 1
        return self._regularizer.loss() if self._left >= 0 else None


class _Proximal(Rule):
    """The proximal step and the controller that leads to a target."""

    sources = ("egret.rate", "egret.rate_control", "egret.ggd")

    def __init__(self, model: nn.Module, target_bits: float, steps: int) -> None:
        self._regularizer = RateRegularizer(model, target_bits=target_bits, steps=steps)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self._regularizer.step(optimizer)
        self.lam = self._regularizer.lam


class _Pruning(Rule):
    """Gradual magnitude pruning in the first half, fine-tuning with masks in the second."""

    sources = ("egret.pruning",)

    def __init__(self, model: nn.Module, share: float, steps: int) -> None:
        self._pruner = MagnitudePruner(model, share, steps=max(1, steps // 2))

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self._pruner.step()


class _Rounded(Rule):
    """Quantisation-aware training alone: rounded weights in every pass."""

    sources: tuple[str, ...] = ("egret.qat",)

    def __init__(self, model: nn.Module, step_log2: float, steps: int) -> None:
        self._rounding = StraightThrough(model, int(step_log2))

    def forward(self) -> StraightThrough:
        return self._rounding

    def steps(self) -> dict[str, int]:
        return dict(self._rounding.step_log2)

    def finish(self) -> None:
        self._rounding.apply()


class _Target(_Rounded):
    """What `egret train --target-bits` does: the controller, on weights rounded in training."""

    sources = ("egret.qat", "egret.rate", "egret.rate_control", "egret.ggd")

    def __init__(self, model: nn.Module, target_bits: float, steps: int) -> None:
        self._rounding = StraightThrough(model, target_bits=target_bits)
        self._regularizer = RateRegularizer(
            model, target_bits=target_bits, steps=steps, quantizer=self._rounding
        )

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self._regularizer.step(optimizer)
        self.lam = self._regularizer.lam


@dataclass(frozen=True)
class Method:
    """A way to a smaller network.

    Parameters
    ----------
    title : str
        Name in tables.
    knob : str
        What trades size for quality: "step" (n of the step 2^-n that it is packed in), "λ",
        "pruned" (a share) or "target" (bits per weight).
    trained_as : str
        The method whose trainings it uses.
    rule : type of Rule
        What it does in training.
    options : dict
        Further arguments of the rule.
    """

    title: str
    knob: str
    trained_as: str
    rule: type[Rule]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_packing(self) -> bool:
        """Whether the knob turns only when the network is packed."""
        return self.rule is Rule

    def start(self, model: nn.Module, value: float, steps: int) -> Rule:
        """Return the rule for a training of so many steps at a value of the knob."""
        return self.rule(model, value, steps, **self.options)


METHODS = {
    "plain": Method("plain", "step", "plain", Rule),
    "coarse": Method("plain, coarser steps", "step", "plain", Rule),
    "prune": Method("pruning, fine-tuned", "pruned", "prune", _Pruning),
    "l2": Method("L2", "λ", "l2", _InLoss, {"nu": 2.0}),
    "l1": Method("L1", "λ", "l1", _InLoss, {"nu": 1.0}),
    "l0.5": Method("L0.5", "λ", "l0.5", _InLoss, {"nu": 0.5}),
    "backslash": Method(
        "BackSlash (DGGR in the loss)", "λ", "backslash", _InLoss, {"nu": "adaptive"}
    ),
    "qat": Method("QAT", "step", "qat", _Rounded),
    "proximal": Method("proximal step, target", "target", "proximal", _Proximal),
    "egret": Method("Egret (target, rounded in training)", "target", "egret", _Target),
}
"""The methods, by name. One that rounds in training has the knob "step" and a `Rule` of its own,
whose `forward` does it."""


def code_digest(method: Method) -> str:
    """Return a fingerprint of the programs that a method runs: comments do not count."""
    rule = method.rule
    found = hashlib.sha256(repr(method.options).encode())
    texts = [inspect.getsource(each) for each in rule.__mro__ if each is not object]
    texts.append(repr(FINAL_SHARE))
    for name in rule.sources:
        file = importlib.import_module(name).__file__
        assert file is not None
        texts.append(Path(file).read_text(encoding="utf-8"))
    for text in texts:
        found.update(plain_code(text).encode())
    return found.hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def plain_code(text: str) -> str:
    """Return what Python reads in a program, without comments, docstrings and layout."""
    return ast.dump(_WithoutDocstrings().visit(ast.parse(text)))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
