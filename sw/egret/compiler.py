"""From a trained PyTorch model to a network of integers; the only place that decides scales."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.fx import Node, Tracer

from egret.errors import CapacityError, EgretError, QuantizationError
from egret.network import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    MULTIPLIER_MAX,
    SHIFT_MAX,
    IntegerLayer,
    IntegerNetwork,
)
from egret.params import MULTIPLIER_BITS
from egret.quantize import DEFAULT_STEP_LOG2, quantize, steps_by_name

__all__ = ["compile_network", "fixed_point"]

_SUPPORTED = "Linear, ReLU, BatchNorm1d, Flatten, Dropout and Identity in one chain"
# Below half the largest value, clipping costs more than the finer step gains.
_CLIP_CANDIDATES = np.linspace(0.5, 1.0, 51)

Matrix = npt.NDArray[np.float64]


@dataclass
class _FloatLayer:
    name: str
    weight: Matrix
    bias: Matrix | None
    relu: bool = False


def compile_network(
    model: nn.Module,
    calibration: torch.Tensor,
    *,
    step_log2: int | Mapping[str, int] = DEFAULT_STEP_LOG2,
    weight_bits: int = 12,
    name: str | None = None,
) -> IntegerNetwork:
    """Turn a trained model into integers.

    The model is traced, batch norm is folded into the neighbouring linear layer, weights are
    rounded to multiples of their step, and the scale of every int8 activation is chosen on the
    calibration inputs: from the largest magnitude for the inputs, and for each layer's output by
    the least squared error among scales down to half the largest output (saturating a few large
    values can pay for a finer step). All as in evaluation mode; the model is not changed.

    Parameters
    ----------
    model : torch.nn.Module
        A chain of Linear, ReLU, BatchNorm1d, Flatten, Dropout and Identity, as modules or as the
        functions of the same names.
    calibration : torch.Tensor, shape (n, …)
        Typical inputs, such as the training or validation inputs; finite, n ≥ 1.
    step_log2 : int or mapping of str to int
        n: weights are kept in steps of 2^-n. A mapping gives it by tensor name, such as
        `{"output.weight": 9}`; tensors it does not name take 8.
    weight_bits : int
        Width of a signed weight.
    name : str, optional
        Name of the network; the class's name when absent.

    Returns
    -------
    IntegerNetwork
        Layers named as in the model.

    Raises
    ------
    EgretError
        The model holds something else, is no chain, or the calibration does not fit it.
    QuantizationError
        A weight or bias is not finite, or a weight is outside `weight_bits`; names the tensor.
    CapacityError
        A layer's results might not fit int32, or a scale the requantiser; names the layer.
    """
    float_layers = _trace(model)
    inputs = _calibration_inputs(calibration, float_layers[0])
    steps = steps_by_name(step_log2, [f"{layer.name}.weight" for layer in float_layers])

    input_scale = _positive(float(np.abs(inputs).max())) / ACTIVATION_MAX
    activations = inputs
    layers = []
    for layer in float_layers:
        tensor = f"{layer.name}.weight"
        weight = quantize(layer.weight, steps[tensor], name=tensor, bits=weight_bits)
        bias = None if layer.bias is None else _float32_bias(layer.bias, f"{layer.name}.bias")
        activations = activations @ weight.dequantize().astype(np.float64).T
        if bias is not None:
            activations = activations + bias
        if layer.relu:
            activations = np.maximum(activations, 0.0)
        output_scale = _output_scale(activations)
        try:
            multiplier, shift = fixed_point(
                math.ldexp(input_scale, -weight.step_log2) / output_scale
            )
        except CapacityError as error:
            raise CapacityError(f"layer {layer.name!r}: {error}") from error
        layers.append(
            IntegerLayer(
                name=layer.name,
                weight=weight,
                bias=bias,
                input_scale=input_scale,
                output_scale=output_scale,
                multiplier=multiplier,
                shift=shift,
                relu=layer.relu,
            )
        )
        input_scale = output_scale
    return IntegerNetwork(name=name or type(model).__name__, layers=tuple(layers))


def fixed_point(ratio: float) -> tuple[int, int]:
    """Express a positive ratio as multiplier / 2^shift.

    Parameters
    ----------
    ratio : float
        Accumulator scale over output scale; finite and above 0.

    Returns
    -------
    multiplier : int
        2^15 to 2^16 − 1; smaller only for ratios below 2^-48, where the shift is at its limit.
    shift : int
        0 to 63.

    Raises
    ------
    CapacityError
        The ratio is too large or too small for the requantiser's fields.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise CapacityError(
            f"requantiser's ratio: found {ratio!r}, expected a finite number above 0"
        )
    exponent = math.frexp(ratio)[1]
    shift = min(MULTIPLIER_BITS - exponent, SHIFT_MAX)
    multiplier = round(math.ldexp(ratio, shift)) if shift >= 0 else MULTIPLIER_MAX + 1
    if multiplier > MULTIPLIER_MAX and shift > 0:
        # Rounding reached 2^16: the same number with one bit less.
        shift -= 1
        multiplier >>= 1
    if not (shift >= 0 and 0 < multiplier <= MULTIPLIER_MAX):
        raise CapacityError(
            f"requantiser's ratio: found {ratio!r}, expected between 2^-{SHIFT_MAX} and "
            f"{MULTIPLIER_MAX}"
        )
    return multiplier, shift


def _positive(largest: float) -> float:
    # A tensor of zeros has no scale of its own; any will do.
    return largest if largest > 0 else 1.0


def _output_scale(activations: Matrix) -> float:
    largest = _positive(float(np.abs(activations).max()))
    best_scale, best_error = largest / ACTIVATION_MAX, math.inf
    # From the largest scale down, so that of equal errors the one that clips least wins.
    for fraction in _CLIP_CANDIDATES[::-1]:
        scale = float(fraction) * largest / ACTIVATION_MAX
        rounded = np.clip(np.rint(activations / scale), ACTIVATION_MIN, ACTIVATION_MAX) * scale
        error = float(np.square(activations - rounded).sum())
        if error < best_error:
            best_scale, best_error = scale, error
    return best_scale


def _float32_bias(bias: Matrix, name: str) -> npt.NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(bias))
    if bad.size:
        raise QuantizationError(
            f"tensor {name!r}: element {int(bad[0])} is {bias[bad[0]]}, expected a finite number"
        )
    return bias.astype(np.float32)


def _calibration_inputs(calibration: torch.Tensor, first: _FloatLayer) -> Matrix:
    if not isinstance(calibration, torch.Tensor):
        raise EgretError(f"calibration: found {type(calibration).__name__}, expected a tensor")
    features = first.weight.shape[1]
    shape = tuple(calibration.shape)
    if len(shape) < 2 or shape[0] < 1 or math.prod(shape[1:]) != features:
        raise EgretError(
            f"calibration: found shape {shape}, expected (n, {features}) with n of 1 or more, "
            f"as layer {first.name!r} has {features} inputs"
        )
    inputs = _numpy(calibration).reshape(shape[0], features)
    if not np.isfinite(inputs).all():
        raise EgretError("calibration: found NaN or infinity, expected finite numbers")
    return inputs


def _numpy(tensor: torch.Tensor) -> Matrix:
    return tensor.detach().to("cpu", torch.float64).numpy()


class _Chain:
    """Collects the layers as the graph is walked."""

    def __init__(self) -> None:
        self.layers: list[_FloatLayer] = []
        # Batch norm between a ReLU (or the input) and the next linear layer.
        self.pending: tuple[str, Matrix, Matrix] | None = None

    def linear(self, name: str, module: nn.Linear) -> None:
        if any(layer.name == name for layer in self.layers):
            raise EgretError(f"module {name!r} is used twice, expected once in the chain")
        weight = _numpy(module.weight)
        bias = None if module.bias is None else _numpy(module.bias)
        if self.pending is not None:
            _, scale, offset = self.pending
            bias = (0.0 if bias is None else bias) + weight @ offset
            weight = weight * scale
            self.pending = None
        self.layers.append(_FloatLayer(name, weight, bias))

    def batch_norm(self, name: str, module: nn.BatchNorm1d) -> None:
        if module.running_mean is None or module.running_var is None:
            raise EgretError(
                f"module {name!r}: BatchNorm1d without running statistics cannot be folded"
            )
        scale = 1.0 / np.sqrt(_numpy(module.running_var) + module.eps)
        if module.affine:
            scale = scale * _numpy(module.weight)
        offset = -_numpy(module.running_mean) * scale
        if module.affine:
            offset = offset + _numpy(module.bias)
        if self.pending is not None:
            raise EgretError(
                f"module {name!r}: found BatchNorm1d after BatchNorm1d, expected a Linear between"
            )
        if not self.layers or self.layers[-1].relu:
            self.pending = (name, scale, offset)
            return
        layer = self.layers[-1]
        layer.weight = layer.weight * scale[:, None]
        layer.bias = offset + (0.0 if layer.bias is None else layer.bias * scale)

    def relu(self, name: str) -> None:
        if not self.layers or self.pending is not None:
            raise EgretError(f"{name}: found ReLU without a Linear before it")
        self.layers[-1].relu = True

    def flatten(self, name: str, start: object, end: object) -> None:
        if (start, end) != (1, -1):
            raise EgretError(
                f"{name}: found flatten from {start} to {end}, expected 1 to -1, which keeps the "
                "batch"
            )

    def finish(self) -> list[_FloatLayer]:
        if self.pending is not None:
            raise EgretError(
                f"module {self.pending[0]!r}: found BatchNorm1d without a Linear to fold it into"
            )
        if not self.layers:
            raise EgretError("model: found no Linear layer, expected at least one")
        for layer, following in zip(self.layers, self.layers[1:], strict=False):
            if layer.weight.shape[0] != following.weight.shape[1]:
                raise EgretError(
                    f"layer {following.name!r} has {following.weight.shape[1]} inputs, expected "
                    f"the {layer.weight.shape[0]} outputs of layer {layer.name!r}"
                )
        return self.layers


def _trace(model: nn.Module) -> list[_FloatLayer]:
    if not isinstance(model, nn.Module):
        raise EgretError(f"model: found {type(model).__name__}, expected a torch.nn.Module")
    chain = _Chain()
    if type(model) is nn.Linear:
        # The tracer opens the root, even where it is the layer itself.
        chain.linear("linear", model)
        return chain.finish()
    try:
        nodes = list(Tracer().trace(model).nodes)
    except Exception as error:
        # Tracing runs the user's forward, which may raise anything.
        raise EgretError(
            f"model {type(model).__name__}: cannot be traced ({error}); expected {_SUPPORTED}"
        ) from error
    previous: Node | None = None
    for node in nodes:
        if node.op == "placeholder" and previous is not None:
            raise EgretError(
                f"model {type(model).__name__}: found a second input {node.name!r}, expected one"
            )
        if node.op != "placeholder" and node.all_input_nodes != [previous]:
            raise EgretError(
                f"model {type(model).__name__}: {_describe(node)} does not follow "
                f"{_describe(previous)} alone; expected {_SUPPORTED}"
            )
        if node.op not in ("placeholder", "output"):
            _add(chain, model, node)
        previous = node
    return chain.finish()


def _describe(node: Node | None) -> str:
    if node is None or node.op == "placeholder":
        return "the input"
    if node.op == "call_module":
        return f"module {node.target!r}"
    return f"operation {node.name!r}"


def _add(chain: _Chain, model: nn.Module, node: Node) -> None:
    where = _describe(node)
    if node.op == "call_module":
        name = str(node.target)
        module = model.get_submodule(name)
        # Exact types: a subclass may compute something else.
        if type(module) is nn.Linear:
            chain.linear(name, module)
        elif type(module) is nn.BatchNorm1d:
            chain.batch_norm(name, module)
        elif type(module) is nn.ReLU:
            chain.relu(where)
        elif type(module) is nn.Flatten:
            chain.flatten(where, module.start_dim, module.end_dim)
        elif type(module) not in (nn.Dropout, nn.Identity):
            raise EgretError(f"{where}: found {type(module).__name__}, expected {_SUPPORTED}")
    elif node.target in (torch.relu, nn.functional.relu, "relu"):
        chain.relu(where)
    elif node.target in (torch.flatten, "flatten"):
        arguments = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        chain.flatten(where, arguments.get("start_dim", 0), arguments.get("end_dim", -1))
    elif node.target is not nn.functional.dropout:
        raise EgretError(f"{where}: expected {_SUPPORTED}")
