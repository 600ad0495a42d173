"""The rate term: what a network pays in training for the bits of its weights."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from egret.checks import check_at_least, check_count, check_positive
from egret.errors import EgretError
from egret.ggd import SHAPE_MAX, Moments
from egret.patterns import check_patterns, matches
from egret.quantize import DEFAULT_STEP_LOG2, steps_by_name
from egret.rate_control import RateController

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from egret.qat import StraightThrough

__all__ = [
    "DEFAULT_EPS",
    "DEFAULT_EVERY",
    "RateRegularizer",
    "choose_parameters",
    "entropy_per_weight",
    "local_part",
    "root_mean_square",
    "sharded_modules",
    "widened",
]

DEFAULT_EPS = 0.1
"""Default ε, in units of the weights."""
DEFAULT_EVERY = 10
"""Steps from one estimate of ν, and one measurement of the bits, to the next."""

# The first λ of a controlled training pulls on a weight with this share of what the data does.
_FIRST_FORCE = 0.01
# With a target a step takes at most this share of the weights' norm: ν may change at once, and the
# same λ then pulls a hundred times as hard.
_LARGEST_SHARE = 0.25
# Of large tensors some weights are looked at for it, at random, and at least so many.
_SAMPLE = 1 << 13
# λ stays within this and its inverse where no pull moves any weight, as with a learning rate of 0.
_LARGEST_LAM = 1e30
# Bits above the target that chosen steps leave room for while the network learns without a rate.
_HEADROOM = 3.0
# A controlled training measures at least so often, or after every step.
_MEASUREMENTS = 200
# Bins up to which counting beats sorting.
_MAX_BINS = 1 << 22


class RateRegularizer:
    """Discretized generalized Gaussian rate (DGGR) of a model's weights.

        R(θ) = (1/N) Σ (|θ_i| + ε)^ν

    over the N chosen weights, with the shape ν estimated from the same weights. There are two ways
    to charge it; use one:

    - `step(optimizer)` after the optimiser's step: a proximal step, which makes weights exactly 0.
    - `loss()`, added to the training loss: the paper's form, for a given λ. Under Adam weights
      swing about 0 by as much as the learning rate, and rounding must do the rest.

    Say what it should come to, `target_bits` or `target_mb`, and a controller finds λ on the way;
    or give λ. R is a mean, so that the force on a single weight falls with N: scale λ with the
    number of weights when the model grows.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training. Where `fully_shard` has cut its parameters, sums are taken over all
        processes, each of which then makes the same calls.
    lam : float, optional
        λ, the weight of the rate against the loss; 0 or more.
    target_bits : float, optional
        Bits per charged weight at the end of the training, above 0: the entropy of the weights
        rounded to steps of 2^-step_log2 (see `entropy_per_weight`).
    target_mb : float, optional
        The same as the size of everything in the model, in units of 10^6 bytes: parameters and
        buffers that are not charged count in full. Exactly one of `lam` and the two targets is
        given.
    steps : int, optional
        Steps that the training will take; needed with a target, and only there.
    step_log2 : int or mapping of str to int, optional
        The weights will be packed in steps of 2^-step_log2; used with a target only. A mapping
        gives it by parameter name, and may change while the training goes on; names that it lacks,
        and all when it is absent, take `egret.quantize.DEFAULT_STEP_LOG2`.
    quantizer : StraightThrough, optional
        Rounds the weights in training; in place of `step_log2`, and with a target only. Steps that
        it has chosen itself begin fine and grow coarser as the bits fall.
    eps : float
        ε, above 0: keeps the gradient finite at 0 where ν < 1. The larger it is, the weaker the
        pull on weights that are already small.
    nu : float or "adaptive"
        ν, or "adaptive" to estimate it from the weights. 1 and 2 give L1 and L2.
    every : int
        ν is estimated, and λ controlled, in the first call of `loss` or `step` and in every
        `every`-th after it. With a target more often, where `steps` is below 200 times that.
    include : sequence of str, optional
        Patterns (`*`, `?`, `[…]`) of parameter names to charge. When absent: every parameter
        with two axes or more, so that biases and the parameters of norms go free.
    exclude : sequence of str
        Patterns of parameter names to leave out of those.
    per : "model" or "tensor"
        Whether one ν serves all weights, or each tensor has its own.

    Attributes
    ----------
    names : tuple of str
        Names of the parameters charged. Tied parameters appear once.
    weights : int
        N.
    lam, eps : float
        λ as it is now; ε as given.
    nus : tuple of float
        ν of each of `names`, as last estimated; before the first step, of the initial weights.
    target_bits : float or None
        The target in bits per charged weight, also where a size was asked for.

    Raises
    ------
    EgretError
        A number out of its range, no parameter is chosen, not exactly one of `lam` and the targets
        is given, or the size asked for is less than what is not charged takes.

    Notes
    -----
    Source: arXiv 2504.16968, section 3.2 (DGGR and the gradient with ε). The proximal step and the
    controller are not from there.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float | None = None,
        *,
        target_bits: float | None = None,
        target_mb: float | None = None,
        steps: int | None = None,
        step_log2: int | Mapping[str, int] | None = None,
        quantizer: "StraightThrough | None" = None,
        eps: float = DEFAULT_EPS,
        nu: float | str = "adaptive",
        every: int = DEFAULT_EVERY,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        per: str = "model",
    ) -> None:
        if [lam, target_bits, target_mb].count(None) != 2:
            raise EgretError("rate term: give exactly one of lam, target_bits and target_mb")
        if lam is not None:
            check_at_least("lam", lam, 0)
        check_positive("eps", eps)
        if isinstance(nu, str):
            if nu != "adaptive":
                raise EgretError(f"nu: found {nu!r}, expected 'adaptive' or a number above 0")
        else:
            check_positive("nu", nu)
        check_count("every", every)
        if per not in ("model", "tensor"):
            raise EgretError(f"per: found {per!r}, expected 'model' or 'tensor'")
        if (steps is None) != (lam is not None):
            raise EgretError("steps: belongs to a target, which needs it")
        if steps is not None:
            check_count("steps", steps)
        if steps is None and step_log2 is not None:
            raise EgretError("step_log2: belongs to a target, found none")
        if quantizer is not None and (steps is None or step_log2 is not None):
            raise EgretError("quantizer: takes the place of step_log2, and needs a target")
        chosen = choose_parameters(model, include, exclude)
        if quantizer is not None:
            quantizer.check_rounds(chosen)
        self.names = tuple(chosen)
        self._all_names = tuple(name for name, _ in model.named_parameters(remove_duplicate=False))
        if step_log2 is None:
            step_log2 = DEFAULT_STEP_LOG2 if quantizer is None else quantizer.step_log2
        steps_by_name(step_log2, self._all_names)
        self._parameters = tuple(chosen.values())
        self.weights = sum(parameter.numel() for parameter in self._parameters)
        if not self.weights:
            raise EgretError(f"weights: {', '.join(self.names)}: found none, expected at least one")
        self.eps = float(eps)
        self.step_log2 = step_log2
        self._every = every if steps is None else min(every, math.ceil(steps / _MEASUREMENTS))
        self._per_tensor = per == "tensor"
        self._adaptive = isinstance(nu, str)
        self.nus = (SHAPE_MAX if isinstance(nu, str) else float(nu),) * len(self.names)
        self._calls = 0
        self.target_bits = target_bits
        if target_mb is not None:
            self.target_bits = self._bits_of_size(model, target_mb)
        self._controller = None
        self._quantizer = quantizer
        # Where the weights are 0, while they are held there.
        self._zeros: tuple[torch.Tensor, ...] = ()
        if self.target_bits is not None and steps is not None:
            self._controller = RateController(self.target_bits, steps)
            if quantizer is not None:
                quantizer.follow(self.target_bits + _HEADROOM)
        # With a target: chosen in the first step, when there are gradients to compare with.
        self.lam = 0.0 if lam is None else float(lam)
        self._update_shapes()

    def _bits_of_size(self, model: nn.Module, megabytes: float) -> float:
        check_positive("target_mb", megabytes)
        charged = {id(parameter) for parameter in self._parameters}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(tensor):
                raise EgretError(f"{name!r}: has no size yet; run the model on a batch first")
        free = sum(
            tensor.numel() * tensor.element_size()
            for tensor in (*model.parameters(), *model.buffers())
            if id(tensor) not in charged
        )
        if megabytes * 1e6 <= free:
            raise EgretError(
                f"target_mb: found {megabytes!r}, expected more than the {free / 1e6:g} MB of the "
                "parameters and buffers that the rate term leaves alone"
            )
        return (megabytes * 1e6 - free) * 8 / self.weights

    @property
    def nu(self) -> float:
        """ν as last estimated; with `per="tensor"` the mean over the weights."""
        if not self._per_tensor:
            return self.nus[0]
        sizes = [parameter.numel() for parameter in self._parameters]
        return sum(nu * size for nu, size in zip(self.nus, sizes, strict=True)) / self.weights

    @torch.no_grad()
    def _update_shapes(self) -> None:
        if not self._adaptive:
            return
        parts = [_moments(parameter) for parameter in self._parameters]
        if not self._per_tensor:
            parts = [sum(parts, Moments())] * len(parts)
        # A parameter without elements has no shape, and needs none.
        self.nus = tuple(SHAPE_MAX if part.shape is None else part.shape for part in parts)

    def _start_call(self) -> bool:
        """Count a call of `loss` or `step`; tell whether ν and the bits are due."""
        first = 1 if self._controller is None else self._controller.first
        self._calls += 1
        measures = (self._calls - first) % self._every == 0
        if measures:
            self._update_shapes()
        if self._controller is not None and self._calls == first:
            self.lam = self._first_lam()
        return measures

    @torch.no_grad()
    def _first_lam(self) -> float:
        """Return the λ that pulls on a weight a little, compared with what the data does."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # Without gradients yet: as if their norm were 1.
        square = sum(_moments(gradient).squares for gradient in gradients) or 1.0
        force = math.sqrt(square * self.weights)
        pull = 0.0
        for parameter, nu in zip(self._parameters, self.nus, strict=True):
            pulls = nu * (widened(local_part(parameter)).abs() + self.eps) ** (nu - 1)
            pull += float(_reduce(pulls.sum(dtype=torch.float64), parameter, dist.ReduceOp.SUM))
        first = _FIRST_FORCE * force / (pull / self.weights)
        return first if math.isfinite(first) else 1.0

    def bits_per_weight(self) -> float:
        """Return the bits per weight that the controller goes by, of the present weights.

        Returns
        -------
        float
            `entropy_per_weight` at the step of `step_log2`.
        """
        by_name = steps_by_name(self.step_log2, self._all_names)
        return entropy_per_weight(self._parameters, [by_name[name] for name in self.names])

    def rate(self) -> torch.Tensor:
        """Return R of the current weights, a scalar that carries gradients.

        ν is estimated first and is a constant to the gradient.
        """
        self._update_shapes()
        return self._rate()

    def _rate(self) -> torch.Tensor:
        device = self._parameters[0].device
        total = torch.zeros((), device=device)
        for parameter, nu in zip(self._parameters, self.nus, strict=True):
            mine = (widened(local_part(parameter)).abs() + self.eps).pow(nu).sum()
            # The gradient is that of the machine's own part.
            all_parts = _reduce(mine.detach().clone(), parameter, dist.ReduceOp.SUM)
            total = total + (mine + (all_parts - mine.detach())).to(device)
        return total / self.weights

    def loss(self) -> torch.Tensor:
        """Return λ·R of the current weights, a scalar to add to the training loss.

        Call it once a step: calls are counted (see `every`). For the value alone take `rate`.

        Raises
        ------
        EgretError
            There is a target. Where the rate dominates the loss, a larger λ in it makes weights
            swing further instead of settling at 0, so that no controller could follow the bits.
        """
        if self._controller is not None:
            raise EgretError("rate term: found a target, which needs step(optimizer), not loss()")
        self._start_call()
        return self.lam * self._rate()

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights towards 0, after the optimiser's step; small ones become exactly 0.

        With a target it does nothing in the first fifth of the training, and from 70 % on what is
        0, or would be packed as 0 then, stays 0. λ is kept where a step takes at most a quarter
        of the weights' norm, and no weight is moved while the bits are far below the schedule.

        Each weight's magnitude falls by η_i·λ·∂R/∂|θ_i|, and not below 0: the proximal step of the
        rate, which is concave for ν < 1, by its tangent. η_i is the optimiser's learning rate,
        divided under Adam by the root of its second moment as Adam's own steps are: a weight that
        the data does not care for goes first. Weights of a parameter that Adam has not stepped
        yet stay.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            The one that trains the model, after its `step`. Adam and those that keep the same
            state (`exp_avg_sq`) are known; for others η_i is the learning rate.

        Raises
        ------
        EgretError
            The optimiser does not train one of the charged parameters.
        """
        groups = {
            id(parameter): group
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, parameter in zip(self.names, self._parameters, strict=True):
            if id(parameter) not in groups:
                raise EgretError(f"parameter {name!r}: the optimiser does not train it")
        controller = self._controller
        if controller is not None and self._calls + 1 < controller.first:
            self._calls += 1
            return
        measures = self._start_call()
        holds = controller is not None and self._calls >= controller.hold
        if holds:
            self._hold_zeros()
        if measures and controller is not None:
            while self._share_taken(optimizer, groups) > _LARGEST_SHARE:
                self.lam /= 2
        if controller is None or not controller.brakes:
            for parameter, nu in zip(self._parameters, self.nus, strict=True):
                weights = local_part(parameter)
                wide = widened(weights)
                pull = self._pull(parameter, nu, optimizer, groups)
                if pull is None:
                    continue
                # Not sign · max(…, 0), which would leave −0 behind.
                weights.copy_(wide - wide.clamp(-pull, pull))
        if holds:
            self._find_zeros()
        if measures and controller is not None:
            # After the step: zeros that the optimiser has just moved would count as weights.
            bits = self.bits_per_weight()
            lam = self.lam * controller.update(bits, self._calls)
            self.lam = max(1 / _LARGEST_LAM, min(_LARGEST_LAM, lam))
            if self._quantizer is not None and controller.falls(self._calls):
                self._quantizer.follow(controller.scheduled(self._calls))
            elif self._quantizer is not None and not holds and controller.misses(bits):
                # Weights that are few and large by nature have fewer bits than Gaussian ones.
                self._quantizer.refine()
                controller.wait()

    def _pull(
        self,
        parameter: nn.Parameter,
        nu: float,
        optimizer: torch.optim.Optimizer,
        groups: Mapping[int, dict[str, Any]],
        thinning: int = 1,
    ) -> torch.Tensor | None:
        """Return how far local weights, or one in so many of them in a row, are to move."""
        group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
        if "betas" in group and not state:
            return None
        pull = _thinned(parameter, thinning).abs().add_(self.eps).pow_(nu - 1)
        pull *= float(group["lr"]) * self.lam * nu / self.weights
        if "exp_avg_sq" in state:
            pull /= _adam_size(group, state, thinning)
        return pull

    def _share_taken(
        self, optimizer: torch.optim.Optimizer, groups: Mapping[int, dict[str, Any]]
    ) -> float:
        """Return what a step would take, over what the weights are: a ratio of norms."""
        taken = squares = 0.0
        for parameter, nu in zip(self._parameters, self.nus, strict=True):
            thinning = max(1, local_part(parameter).numel() // _SAMPLE)
            pull = self._pull(parameter, nu, optimizer, groups, thinning)
            if pull is None:
                continue
            sizes = _thinned(parameter, thinning).abs()
            parts = [part.square().sum(dtype=torch.float64) for part in (sizes.min(pull), sizes)]
            sums = _reduce(thinning * torch.stack(parts), parameter, dist.ReduceOp.SUM).tolist()
            taken, squares = taken + sums[0], squares + sums[1]
        return math.sqrt(taken / squares) if squares > 0 else 0.0

    def _hold_zeros(self) -> None:
        parts = [local_part(parameter) for parameter in self._parameters]
        if self._zeros:
            for part, zeros in zip(parts, self._zeros, strict=True):
                part.masked_fill_(zeros, 0.0)
            return
        # The first time: what would be packed as 0.
        by_name = steps_by_name(self.step_log2, self._all_names)
        for name, part in zip(self.names, parts, strict=True):
            part.masked_fill_(widened(part).abs() <= 2.0 ** -(by_name[name] + 1), 0.0)

    @torch.no_grad()
    def _find_zeros(self) -> None:
        self._zeros = tuple(local_part(parameter) == 0 for parameter in self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes to go on from here: plain numbers and strings."""
        return {
            "names": list(self.names),
            "lam": self.lam,
            "nus": list(self.nus),
            "calls": self._calls,
            "controller": None if self._controller is None else self._controller.state_dict(),
            "step_log2": None if self._quantizer is None else dict(self._quantizer.step_log2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another regulariser of the same settings was.

        The model's weights are loaded first: those that are held at 0 are known by being 0. A
        quantizer gets its steps back with the rest.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        EgretError
            It charged other parameters, its quantizer rounded others, or only one of the two has a
            target, or a quantizer.
        """
        lacks = sorted(self.state_dict().keys() - state.keys())
        if lacks:
            raise EgretError(f"rate term: the state lacks {', '.join(lacks)}")
        if list(state["names"]) != list(self.names):
            raise EgretError(
                f"rate term: the state is for parameters {', '.join(state['names'])}, expected "
                f"{', '.join(self.names)}"
            )
        if (state["controller"] is None) != (self._controller is None):
            raise EgretError("rate term: only one of the state and this regulariser has a target")
        steps, quantizer = state["step_log2"], self._quantizer
        if (steps is None) != (quantizer is None):
            raise EgretError(
                "rate term: only one of the state and this regulariser has a quantizer"
            )
        if quantizer is not None:
            if set(steps) != set(quantizer.step_log2):
                raise EgretError(
                    f"rate term: the state's quantizer rounds {', '.join(steps)}, expected "
                    f"{', '.join(quantizer.step_log2)}"
                )
            quantizer.step_log2.update(steps)
        self.lam, self.nus, self._calls = state["lam"], tuple(state["nus"]), state["calls"]
        self._zeros = ()
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
            if self._calls >= self._controller.hold:
                self._find_zeros()


def choose_parameters(
    model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Return the parameters that are to become small, by name.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    include : sequence of str or None
        Patterns of names; None for every floating-point parameter with two axes or more.
    exclude : sequence of str
        Patterns of names to leave out of those.

    Returns
    -------
    dict of str to torch.nn.Parameter
        Those that are trained. A tied parameter appears once, under its first name; patterns may
        match any of its names.

    Raises
    ------
    EgretError
        There is none, or one that cannot become small: not of real floating-point numbers, not
        initialised yet, or one that `weight_norm` or `spectral_norm` divides by a norm of. Or the
        patterns are no list, or one matches no parameter.
    """
    for module in sharded_modules(model):
        module.reshard()
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    everything = [name for group in names.values() for name in group]
    check_patterns(() if include is None else include, "include", everything, "parameters")
    check_patterns(exclude, "exclude", everything, "parameters")
    chosen = {}
    for parameter, group in names.items():
        if not parameter.requires_grad or matches(group, exclude):
            continue
        if include is not None and not matches(group, include):
            continue
        if isinstance(parameter, UninitializedParameter):
            raise EgretError(
                f"parameter {group[0]!r}: has no size yet; run the model on a batch first"
            )
        if include is None and (parameter.dim() < 2 or not parameter.is_floating_point()):
            continue
        if not parameter.is_floating_point():
            raise EgretError(
                f"parameter {group[0]!r}: found {parameter.dtype}, expected real floating point"
            )
        chosen[group[0]] = parameter
    if not chosen:
        raise EgretError("weights: no trainable parameter is chosen, expected at least one")
    normed = dict(_normed(model))
    for name, parameter in chosen.items():
        if id(parameter) in normed:
            raise EgretError(
                f"parameter {name!r}: {normed[id(parameter)]} divides by its norm, which is not to "
                f"become 0; remove it before the training, or exclude the parameter"
            )
    return chosen


_NORMS = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm"}


def _normed(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Yield what norms, as parametrizations or as hooks, divide by: its id and the norm."""
    for module in model.modules():
        parts = module.children() if isinstance(module, ParametrizationList) else ()
        for norm in (_NORMS[name] for part in parts if (name := type(part).__name__) in _NORMS):
            yield from ((id(parameter), norm) for parameter in module.parameters(recurse=False))
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                for end in ("_g", "_v"):
                    yield id(getattr(module, hook.name + end)), "weight_norm"
            if isinstance(hook, SpectralNorm):
                yield id(getattr(module, hook.name + "_orig")), "spectral_norm"


def sharded_modules(model: nn.Module) -> tuple[Any, ...]:
    """Return the modules that `fully_shard` was called on.

    After a pass without gradients the outermost keeps its weights whole, and computes with them
    again whatever has been done to the shards: `reshard` drops them.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return ()
    return tuple(module for module in model.modules() if isinstance(module, fsdp.FSDPModule))


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or as it is where it is wider."""
    # A sum of many bfloat16 terms would stop growing.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a sharded tensor that is on this machine; else the tensor itself."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _is_sharded(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    # Imported by whoever shards: the import takes a second or two, which all others are spared.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _reduce(part: torch.Tensor, over: torch.Tensor, operation: Any) -> torch.Tensor:
    """Combine, in place, what the machines found in their parts of the tensor `over`."""
    if _is_sharded(over):
        for axis, placement in enumerate(over.placements):
            # Shards of shards, as of tensor parallelism below FSDP2, are no `Shard`.
            if not placement.is_replicate():
                dist.all_reduce(part, operation, over.device_mesh.get_group(axis))
    return part


def _moments(parameter: torch.Tensor) -> Moments:
    wide = widened(local_part(parameter))
    sums = [part.sum(dtype=torch.float64) for part in (wide.abs(), wide.square())]
    absolutes, squares = _reduce(torch.stack(sums), parameter, dist.ReduceOp.SUM).tolist()
    if absolutes > 0 and not 0 < squares < math.inf:
        # Squares beyond float32. Rare, and wider ones take twice the time.
        square = wide.double().square().sum()
        squares = float(_reduce(square, parameter, dist.ReduceOp.SUM))
    return Moments(parameter.numel(), absolutes, squares)


@torch.no_grad()
def root_mean_square(parameter: torch.Tensor) -> float:
    """Return the root mean square of a parameter, of all its shards; 0 without elements."""
    return _moments(parameter).scale


def _thinned(tensor: torch.Tensor, thinning: int) -> torch.Tensor:
    """Return the local part of a tensor, widened; or in a row one in so many of its weights."""
    part = local_part(tensor)
    if thinning == 1:
        return widened(part)
    # At random, but the same again: even distances could be those of a matrix' rows.
    size = part.numel()
    generator = torch.Generator().manual_seed(size)
    places = torch.randint(size, (size // thinning,), generator=generator)
    return widened(part.flatten()[places.to(part.device)])


def _adam_size(group: dict[str, Any], state: dict[str, Any], thinning: int) -> torch.Tensor:
    """Return what Adam divides its steps by."""
    # AMSGrad divides by the largest so far.
    second = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return _thinned(second, thinning).div(correction).sqrt_().add_(group["eps"])


@torch.no_grad()
def entropy_per_weight(tensors: Sequence[torch.Tensor], step_log2: int | Sequence[int]) -> float:
    """Return the entropy of weights rounded to a grid.

    This is what the rate controller goes by. The packed file, tables included, takes 1.00 to 1.03
    times as much; it follows the weights in far smaller steps than the length of a code does, and
    depends on no code.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Weights. Each tensor has its own histogram, as each may have its own code.
    step_log2 : int or sequence of int
        n of the step 2^-n, one for all or each tensor's.

    Returns
    -------
    float
        Bits per weight, the mean over all weights; NaN where a weight is not finite.
    """
    count = sum(tensor.numel() for tensor in tensors)
    steps = [step_log2] * len(tensors) if isinstance(step_log2, int) else step_log2
    pairs = zip(tensors, steps, strict=True)
    return sum(_entropy(tensor, step) for tensor, step in pairs if tensor.numel()) / count


def _entropy(tensor: torch.Tensor, step_log2: int) -> float:
    """Return the bits of a tensor's weights together; those of a sharded one of all its parts."""

    def rounded(part: torch.Tensor) -> torch.Tensor:
        # A new tensor, which may be changed; the product with a power of two is exact.
        return (widened(part.detach()) * 2.0**step_log2).round_().flatten()

    values = rounded(local_part(tensor))
    # A machine may have no part of a small tensor.
    ends = (
        torch.stack(torch.aminmax(values)).mul_(values.new_tensor([1.0, -1.0]))
        if values.numel()
        else values.new_full((2,), math.inf)
    )
    low, high = _reduce(ends, tensor, dist.ReduceOp.MIN).tolist()
    high = -high
    if not math.isfinite(high - low):
        return math.nan
    if high - low < _MAX_BINS:
        counts = torch.bincount(values.sub_(low).int(), minlength=int(high - low) + 1)
        counts = _reduce(counts, tensor, dist.ReduceOp.SUM)
    else:
        whole = tensor.full_tensor() if _is_sharded(tensor) else tensor
        counts = rounded(whole).unique(return_counts=True)[1]
    used = counts[counts > 0].double()
    return float((used * (math.log2(tensor.numel()) - used.log2())).sum())
