"""Quantisation-aware training: the network learns with the weights that will be packed."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import nn

from egret.checks import check_at_least, check_positive
from egret.errors import EgretError
from egret.quantize import DEFAULT_STEP_LOG2, STEP_LOG2_RANGE, steps_by_name
from egret.rate import (
    choose_parameters,
    local_part,
    root_mean_square,
    sharded_modules,
    widened,
)

__all__ = ["StraightThrough", "round_to_step", "suitable_step"]

# Entropy of Gaussian weights in steps of their standard deviation, rounded.
_BITS_AT_SCALE = 2.0
# How far a step may be from the right one, in powers of two, before it is changed.
_SLACK = 0.6


class StraightThrough:
    """Rounds a model's weights for the forward and the backward pass, and only for them.

        with quantizer:
            criterion(model(x), y).backward()
        optimizer.step()

    Inside the block every chosen weight is the nearest multiple of its tensor's step; after it the
    weight is what it was before. The gradient at the rounded weights so moves the unrounded ones,
    as if rounding had slope 1 (the straight-through estimator): small steps of the optimiser add
    up, until a weight is rounded to another multiple. The optimiser and the rate term
    (`egret.rate.RateRegularizer`) step outside the block. What is evaluated inside the block is
    what will be packed.

    No module is replaced, so that state dicts, `torch.compile`, DistributedDataParallel and FSDP2
    see an ordinary model; a process rounds its own part of a sharded parameter. One copy of the
    chosen weights is held inside the block.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    step_log2 : int or mapping of str to int, optional
        n of the step 2^-n: one for all tensors, or by parameter name. Names that a mapping lacks
        take `egret.quantize.DEFAULT_STEP_LOG2`.
    target_bits : float, optional
        In place of steps, the bits per weight that the rate term is asked for: each tensor gets
        the `suitable_step` for its weights as they are now, initial or trained.
    include, exclude : sequence of str
        As for `egret.rate.RateRegularizer`: matrices and kernels when absent.

    Attributes
    ----------
    names : tuple of str
        Names of the parameters rounded. Tied parameters appear once.
    step_log2 : dict of str to int
        n of each of `names` and of what is tied to them: what `egret.pack`, `egret.compile` and
        `egret.RateRegularizer` take as `step_log2`. Change it to change the steps. Where matrices
        are frozen, left out or buffers, its names are also what `egret.pack` takes as `include`,
        so that those are kept as they are.

    Raises
    ------
    EgretError
        A step is out of range, a name in the mapping is none of the chosen parameters', no
        parameter is chosen, or not exactly one of `step_log2` and `target_bits` is given.

    Notes
    -----
    Source of the estimator: Y. Bengio, N. Léonard and A. Courville, "Estimating or propagating
    gradients through stochastic neurons for conditional computation", arXiv 1308.3432.
    """

    def __init__(
        self,
        model: nn.Module,
        step_log2: int | Mapping[str, int] | None = None,
        *,
        target_bits: float | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        if (step_log2 is None) == (target_bits is None):
            raise EgretError("straight-through rounding: give one of step_log2 and target_bits")
        chosen = choose_parameters(model, include, exclude)
        if step_log2 is None and target_bits is not None:
            step_log2 = {
                name: suitable_step(root_mean_square(parameter), target_bits)
                for name, parameter in chosen.items()
            }
        assert step_log2 is not None
        self.names = tuple(chosen)
        self._parameters = tuple(chosen.values())
        self._sharded = sharded_modules(model)
        self._follows = target_bits is not None
        tied: dict[int, list[str]] = {id(parameter): [] for parameter in self._parameters}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in tied:
                tied[id(parameter)].append(name)
        given = steps_by_name(step_log2, [name for names in tied.values() for name in names])
        if isinstance(step_log2, Mapping):
            for names in tied.values():
                step = next((given[name] for name in names if name in step_log2), None)
                given |= {} if step is None else dict.fromkeys(names, step)
        self.step_log2 = given
        self._tied = {names[0]: tuple(names) for names in tied.values()}
        self._held: list[torch.Tensor] = []
        self._versions: list[int] = []

    @torch.no_grad()
    def __enter__(self) -> "StraightThrough":
        if self._held:
            raise EgretError("straight-through rounding: its block is entered a second time")
        self._reshard()
        parts = [local_part(parameter) for parameter in self._parameters]
        self._held = [part.clone() for part in parts]
        for name, part in zip(self.names, parts, strict=True):
            part.copy_(round_to_step(part, self.step_log2[name]))
        self._versions = [parameter._version for parameter in self._parameters]
        return self

    @torch.no_grad()
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reshard()
        held, self._held = self._held, []
        versions = [parameter._version for parameter in self._parameters]
        for parameter, weights in zip(self._parameters, held, strict=True):
            local_part(parameter).copy_(weights)
        if kind is None:
            for name, before, after in zip(self.names, self._versions, versions, strict=True):
                if before != after:
                    raise EgretError(
                        f"parameter {name!r}: changed inside the block of straight-through "
                        "rounding, where the change is lost; step the optimiser after it "
                        "(an embedding's max_norm changes it in every pass, and cannot be used)"
                    )

    def _reshard(self) -> None:
        # A pass is to gather the shards as they are, not to use what an earlier one has gathered.
        for module in self._sharded:
            module.reshard()

    def check_rounds(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Refuse to serve a rate term that charges other parameters than are rounded.

        Parameters
        ----------
        parameters : mapping of str to torch.nn.Parameter
            What is charged, by name.

        Raises
        ------
        EgretError
            None of them is rounded.
        """
        mine = {id(parameter) for parameter in self._parameters}
        if not any(id(parameter) in mine for parameter in parameters.values()):
            raise EgretError(
                f"quantizer: rounds {', '.join(self.names)}, expected the same model's "
                f"{', '.join(parameters)}"
            )

    def follow(self, bits: float) -> None:
        """Choose steps anew, for the weights as they are and another number of bits.

        A step stays where it is within 0.6 of a power of two of the right one. Steps that were
        given stay in any case. `RateRegularizer` calls it while it brings the bits down.

        Parameters
        ----------
        bits : float
            Bits per weight, above 0.
        """
        if not self._follows:
            return
        for name, parameter in zip(self.names, self._parameters, strict=True):
            scale = root_mean_square(parameter)
            now = self.step_log2[name]
            if scale > 0 and abs(_exact_step(scale, bits) - now) > _SLACK:
                step = suitable_step(scale, bits)
                self.step_log2.update(dict.fromkeys(self._tied[name], step))

    def refine(self) -> None:
        """Halve the steps, for more bits. Steps that were given stay.

        `RateRegularizer` calls it where weights at the steps that `follow` chose stay short of the
        bits without any pull.
        """
        if self._follows:
            finest = STEP_LOG2_RANGE[1]
            for name, step in self.step_log2.items():
                self.step_log2[name] = min(step + 1, finest)

    @torch.no_grad()
    def apply(self) -> None:
        """Round the weights for good, at the end of the training."""
        self._reshard()
        for name, parameter in zip(self.names, self._parameters, strict=True):
            part = local_part(parameter)
            part.copy_(round_to_step(part, self.step_log2[name]))


def suitable_step(scale: float, target_bits: float) -> int:
    """Return the step for weights that are to be trained to a number of bits.

    Up to two bits per weight the power of two nearest to the weights' scale, half of it for three
    bits, and so on: Gaussian weights would take about two bits at the first, three at the second.
    What that is too much, the rate term takes away where it hurts least.

    Parameters
    ----------
    scale : float
        Root mean square of the weights, 0 or more.
    target_bits : float
        Bits per weight, above 0.

    Returns
    -------
    int
        n of the step 2^-n, in `egret.quantize.STEP_LOG2_RANGE`; `DEFAULT_STEP_LOG2` where all
        weights are 0.

    Raises
    ------
    EgretError
        A number out of its range.
    """
    check_positive("target_bits", target_bits)
    check_at_least("scale", scale, 0)
    if scale == 0:
        return DEFAULT_STEP_LOG2
    low, high = STEP_LOG2_RANGE
    return max(low, min(high, round(_exact_step(scale, target_bits))))


def _exact_step(scale: float, bits: float) -> float:
    """Return n of the right step 2^-n, before it is rounded."""
    return max(0.0, bits - _BITS_AT_SCALE) - math.log2(scale)


def round_to_step(weights: torch.Tensor, step_log2: int) -> torch.Tensor:
    """Return the nearest multiples of 2^-step_log2, halves to even, as `egret.pack` rounds.

    Parameters
    ----------
    weights : torch.Tensor of any floating dtype and shape
        Weights.
    step_log2 : int
        n of the step 2^-n.

    Returns
    -------
    torch.Tensor
        Of the same shape, in float32 or wider.
    """
    wide = widened(weights)
    # A product with a power of two is exact.
    return (wide * 2.0**step_log2).round_().mul_(2.0**-step_log2)
