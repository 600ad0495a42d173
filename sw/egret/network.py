"""A network of integers: what the accelerator computes, with every scale already decided."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from egret.code_search import Codes
from egret.container import CodedRecord, read_container
from egret.errors import CapacityError, EgretError, FormatError
from egret.packing import write_packed
from egret.params import ACTIVATION_BITS, BIAS_BITS, MULTIPLIER_BITS, RESULT_BITS, SHIFT_BITS
from egret.quantize import QuantizedTensor
from egret.safetensors_file import RawTensor

__all__ = [
    "ACTIVATION_MAX",
    "ACTIVATION_MIN",
    "MULTIPLIER_MAX",
    "SHIFT_MAX",
    "IntegerLayer",
    "IntegerNetwork",
]

ACTIVATION_MIN = -(1 << (ACTIVATION_BITS - 1))
"""Smallest int8 activation."""
ACTIVATION_MAX = (1 << (ACTIVATION_BITS - 1)) - 1
"""Largest int8 activation."""
MULTIPLIER_MAX = (1 << MULTIPLIER_BITS) - 1
"""Largest multiplier of the requantiser."""
SHIFT_MAX = (1 << SHIFT_BITS) - 1
"""Largest right shift of the requantiser."""

_NETWORK_VERSION = 1
_RESULT_MIN = -(1 << (RESULT_BITS - 1))
_RESULT_MAX = (1 << (RESULT_BITS - 1)) - 1


@dataclass(frozen=True)
class IntegerLayer:
    """A fully connected layer in integers.

    With int8 activations x, the layer computes `result = weight.values @ x + bias_integer`
    and `activation = saturate((result * multiplier + half) >> shift)`, then the optional ReLU
    (docs/format.md, chapter 2, "Arithmetic").

    Parameters
    ----------
    name : str
        Name of the layer in the model; its tensors are `name.weight` and `name.bias`.
    weight : QuantizedTensor
        Integers of shape (rows, columns) and their step.
    bias : ndarray of float32, shape (rows,), or None
        Bias in the float model's units.
    input_scale : float
        Value of one unit of the int8 input.
    output_scale : float
        Value of one unit of the int8 output.
    multiplier : int
        Requantiser's multiplier, 0 to 65535.
    shift : int
        Requantiser's right shift, 0 to 63.
    relu : bool
        Whether negative outputs become 0.

    Raises
    ------
    EgretError
        A field is not what is described here; the message names the layer and the field.
    """

    name: str
    weight: QuantizedTensor
    bias: npt.NDArray[np.float32] | None
    input_scale: float
    output_scale: float
    multiplier: int
    shift: int
    relu: bool

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, found: object, expected: str) -> None:
            if not ok:
                raise EgretError(
                    f"layer {self.name!r}: {field}: found {found!r}, expected {expected}"
                )

        require(isinstance(self.name, str) and self.name != "", "name", self.name, "a name")
        shape = self.weight.values.shape
        require(len(shape) == 2 and 0 not in shape, "weight", shape, "rows and columns")
        if self.bias is not None:
            require(self.bias.shape == shape[:1], "bias", self.bias.shape, f"shape {shape[:1]}")
            require(self.bias.dtype == np.float32, "bias", str(self.bias.dtype), "float32")
            bad = np.flatnonzero(~np.isfinite(self.bias))
            if bad.size:
                row = int(bad[0])
                require(False, f"bias[{row}]", float(self.bias[row]), "a finite number")
        for field in ("input_scale", "output_scale"):
            value = getattr(self, field)
            require(
                type(value) is float and math.isfinite(value) and value > 0,
                field,
                value,
                "a finite float above 0",
            )
        for field, limit in (("multiplier", MULTIPLIER_MAX), ("shift", SHIFT_MAX)):
            value = getattr(self, field)
            require(type(value) is int and 0 <= value <= limit, field, value, f"0 to {limit}")
        require(type(self.relu) is bool, "relu", self.relu, "a boolean")

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return int(self.weight.values.shape[0])

    @property
    def columns(self) -> int:
        """Inputs of the layer."""
        return int(self.weight.values.shape[1])

    @property
    def weight_name(self) -> str:
        """Name of the weight tensor in the container."""
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        """Name of the bias tensor in the container."""
        return f"{self.name}.bias"

    @property
    def accumulator_scale(self) -> float:
        """Value of one unit of the accumulator: input scale times the weight's step."""
        return math.ldexp(self.input_scale, -self.weight.step_log2)

    @property
    def bias_integer(self) -> npt.NDArray[np.int32] | None:
        """Bias in units of the accumulator, int32 of shape (rows,), or None without a bias.

        Rounded to the nearest integer, ties to even.

        Raises
        ------
        CapacityError
            Some input could drive a row's accumulator plus bias out of int32; the message names
            the layer and the row.
        """
        weights = self.weight.values.astype(np.int64)
        positive = np.maximum(weights, 0).sum(axis=1)
        negative = np.minimum(weights, 0).sum(axis=1)
        highest = positive * ACTIVATION_MAX + negative * ACTIVATION_MIN
        lowest = positive * ACTIVATION_MIN + negative * ACTIVATION_MAX
        # float64: a bias is checked before it is made an integer, so that none wraps around.
        bias = np.zeros(self.rows)
        if self.bias is not None:
            bias = np.rint(self.bias.astype(np.float64) / self.accumulator_scale)
        bad = np.flatnonzero((highest + bias > _RESULT_MAX) | (lowest + bias < _RESULT_MIN))
        if bad.size:
            row = int(bad[0])
            raise CapacityError(
                f"layer {self.name!r}: row {row} can reach {lowest[row] + bias[row]:.0f} to "
                f"{highest[row] + bias[row]:.0f}, outside an int{BIAS_BITS} result"
            )
        return None if self.bias is None else bias.astype(np.int32)


@dataclass(frozen=True)
class IntegerNetwork:
    """A chain of integer layers.

    Parameters
    ----------
    name : str
        Name of the network, for reports.
    layers : tuple of IntegerLayer
        Layers in the order in which they run. A layer's rows and output scale are the next
        one's columns and input scale.

    Raises
    ------
    EgretError
        The chain is empty, two layers have one name, or neighbours do not fit.
    CapacityError
        A layer's results might not fit int32.
    """

    name: str
    layers: tuple[IntegerLayer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise EgretError(f"network {self.name!r}: found no layers, expected at least one")
        names = [layer.name for layer in self.layers]
        for name in names:
            if names.count(name) > 1:
                raise EgretError(f"network {self.name!r}: two layers are named {name!r}")
        for layer, following in zip(self.layers, self.layers[1:], strict=False):
            if layer.rows != following.columns:
                raise EgretError(
                    f"network {self.name!r}: layer {following.name!r} has {following.columns} "
                    f"columns, expected the {layer.rows} rows of layer {layer.name!r}"
                )
            if layer.output_scale != following.input_scale:
                raise EgretError(
                    f"network {self.name!r}: layer {following.name!r} has input scale "
                    f"{following.input_scale!r}, expected the output scale "
                    f"{layer.output_scale!r} of layer {layer.name!r}"
                )
        for layer in self.layers:
            _ = layer.bias_integer

    @property
    def input_features(self) -> int:
        """Length of the input vector."""
        return self.layers[0].columns

    @property
    def output_features(self) -> int:
        """Length of the output vector."""
        return self.layers[-1].rows

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return sum(layer.weight.values.size for layer in self.layers)

    def quantize_input(self, x: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Make int8 activations of float inputs.

        Parameters
        ----------
        x : array_like of float, shape (n, features)
            Inputs in the float model's units; further axes after the first are flattened.

        Returns
        -------
        ndarray of int8, shape (n, features)
            x / input_scale, rounded to nearest (ties to even) and saturated to −128 … 127.

        Raises
        ------
        EgretError
            Another number of features, or a value that is not finite.
        """
        values = np.asarray(x, dtype=np.float64)
        if values.ndim < 2 or math.prod(values.shape[1:]) != self.input_features:
            raise EgretError(
                f"network {self.name!r}: found input of shape {values.shape}, expected "
                f"(n, {self.input_features})"
            )
        values = values.reshape(len(values), self.input_features)
        if not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise EgretError(
                f"network {self.name!r}: input{list(index)} is {values[index]}, expected a "
                "finite number"
            )
        scaled = np.rint(values / self.layers[0].input_scale)
        return np.clip(scaled, ACTIVATION_MIN, ACTIVATION_MAX).astype(np.int8)

    def save(self, path: str | Path, *, codes: str | Sequence[str] | Codes = "auto") -> None:
        """Write the network to a `.egret` container.

        Parameters
        ----------
        path : str or Path
            File to write.
        codes : str, sequence of str, or Codes
            Codes to choose from, as in `egret.packing.pack`.

        Raises
        ------
        EgretError
            The file cannot be written, or a tensor cannot be coded.
        """
        description = {
            "version": _NETWORK_VERSION,
            "name": self.name,
            "layers": [
                {
                    "name": layer.name,
                    "bias": layer.bias is not None,
                    # Hexadecimal floats: exact, and independent of any decimal printer.
                    "input_scale": layer.input_scale.hex(),
                    "output_scale": layer.output_scale.hex(),
                    "multiplier": layer.multiplier,
                    "shift": layer.shift,
                    "relu": layer.relu,
                }
                for layer in self.layers
            ],
        }
        raw = {
            layer.bias_name: RawTensor(
                dtype="F32", shape=layer.bias.shape, data=layer.bias.astype("<f4").tobytes()
            )
            for layer in self.layers
            if layer.bias is not None
        }
        write_packed(
            path,
            {layer.weight_name: layer.weight for layer in self.layers},
            raw,
            network=json.dumps(description, separators=(",", ":")).encode(),
            codes=codes,
        )

    @classmethod
    def load(cls, path: str | Path) -> "IntegerNetwork":
        """Read a network that `save` wrote.

        Parameters
        ----------
        path : str or Path
            A `.egret` container.

        Raises
        ------
        FormatError
            Not a container, damaged, without a network, or with one that does not fit together.
        EgretError
            The file cannot be read.
        """
        container = read_container(path)
        if container.network is None:
            raise FormatError(
                f"{path}: holds tensors but no network; `egret train` and "
                "`egret.compile` write files with one"
            )
        try:
            description = json.loads(container.network)
        except ValueError as error:
            raise FormatError(f"{path}: network: not JSON: {error}") from error
        _check_keys(description, {"version": int, "name": str, "layers": list}, f"{path}: network")
        if description["version"] != _NETWORK_VERSION:
            raise FormatError(
                f"{path}: network: version: found {description['version']}, expected "
                f"{_NETWORK_VERSION}"
            )
        # Layers with equal tensors share them: one is stored, the others are aliases.
        records = {tensor: container.record(tensor) for tensor in container.names}
        coded = {tensor for tensor, record in records.items() if isinstance(record, CodedRecord)}
        layers = []
        for number, entry in enumerate(description["layers"]):
            where = f"{path}: network: layer {number}"
            _check_keys(entry, _LAYER_KEYS, where)
            name = entry["name"]
            try:
                layers.append(
                    IntegerLayer(
                        name=name,
                        weight=container.quantized(_require(f"{name}.weight", coded, where)),
                        bias=_float_bias(
                            container.raw(_require(f"{name}.bias", records.keys() - coded, where)),
                            where,
                        )
                        if entry["bias"]
                        else None,
                        input_scale=_hex_float(entry, "input_scale", where),
                        output_scale=_hex_float(entry, "output_scale", where),
                        multiplier=entry["multiplier"],
                        shift=entry["shift"],
                        relu=entry["relu"],
                    )
                )
            except FormatError:
                raise
            except EgretError as error:
                raise FormatError(f"{path}: network: {error}") from error
        try:
            return cls(name=description["name"], layers=tuple(layers))
        except EgretError as error:
            raise FormatError(f"{path}: {error}") from error


_LAYER_KEYS: dict[str, type] = {
    "name": str,
    "bias": bool,
    "input_scale": str,
    "output_scale": str,
    "multiplier": int,
    "shift": int,
    "relu": bool,
}


def _check_keys(entry: Any, keys: Mapping[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: found {type(entry).__name__}, expected an object")
    if set(entry) != set(keys):
        wrong = sorted(set(entry) ^ set(keys))[0]
        state = "missing" if wrong in keys else "unknown"
        raise FormatError(f"{where}: key {wrong!r} is {state}")
    for key, kind in keys.items():
        # `type`, not isinstance: JSON's true is no integer here.
        if type(entry[key]) is not kind:
            raise FormatError(f"{where}: {key}: found {entry[key]!r}, expected {kind.__name__}")


def _hex_float(entry: Mapping[str, Any], key: str, where: str) -> float:
    try:
        return float.fromhex(entry[key])
    except (ValueError, OverflowError) as error:
        raise FormatError(
            f"{where}: {key}: found {entry[key]!r}, expected a hexadecimal float"
        ) from error


def _require(name: str, names: Any, where: str) -> str:
    if name not in names:
        raise FormatError(f"{where}: tensor {name!r} is not in the file")
    return name


def _float_bias(tensor: RawTensor, where: str) -> npt.NDArray[np.float32]:
    if tensor.dtype != "F32":
        raise FormatError(f"{where}: bias: found dtype {tensor.dtype}, expected F32")
    return np.frombuffer(tensor.data, dtype="<f4").astype(np.float32).reshape(tensor.shape)
