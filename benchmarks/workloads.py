"""The weights that `benchmarks/codec.py` measures on.

What ships is made here in seconds, from fixed seeds: the digits recipe's two networks, trained for
a tenth of the recipe's epochs; draws from generalized Gaussian distributions at steps that give
chosen entropies; and a larger network of such draws in the shapes of a transformer. Files come
through `egret.checkpoint`, and in the layout of llama2.c.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from egret.checkpoint import read_checkpoint
from egret.errors import FormatError
from egret.ggd import sample
from egret.quantize import FLOAT_DTYPES, QuantizedTensor, quantize
from egret.safetensors_file import RawTensor
from egret.statistics import entropy_bits
from egret.value_map import count_values

__all__ = [
    "SCHEMES",
    "SHARES",
    "Case",
    "Model",
    "digits_models",
    "draw_weights",
    "gaussian_sources",
    "prune",
    "quantise",
    "read_llama2c",
    "read_model",
    "transformer",
]

SHARES = (0.0, 0.8, 0.9, 0.95)
"""Shares of every tensor that are pruned away."""
SHAPES = (0.2, 0.5, 0.8, 1.0, 1.5, 2.0)
"""Shape parameters of the synthetic sources."""
ENTROPIES = (0.3, 1.0, 3.0, 7.0)
"""Entropies of the synthetic sources in bits per weight."""
SCHEMES = ("2^-8", "int8 2^-n", "int8 scale")
"""Ways to round: one step for all tensors; int8 with a power of two, or any scale, per tensor."""

_SEED = 2
_STEP_LOG2 = 8
_INT8 = 127
_DIGITS_EPOCHS = 60
_PILOT = 1 << 18


@dataclass(frozen=True)
class Case:
    """Integers to pack as one network.

    Parameters
    ----------
    network, scheme : str
        Name of the network or source, and how it was rounded.
    share : float
        Share of every tensor that was pruned away before.
    trained : bool
        The weights come from training.
    coded : dict of str to QuantizedTensor
        Tensors that are coded.
    raw : dict of str to RawTensor
        Tensors that are kept as they are.
    """

    network: str
    scheme: str
    share: float
    trained: bool
    coded: dict[str, QuantizedTensor] = field(repr=False)
    raw: dict[str, RawTensor] = field(repr=False)


@dataclass(frozen=True)
class Model:
    """Weights of one network.

    Parameters
    ----------
    name : str
        Shown in tables.
    weights : dict of str to ndarray of float32
        The tensors that are coded, all that have two axes or more.
    others : dict of str to ndarray
        The rest, such as biases and norms.
    trained : bool
        They come from training, not from a source of random numbers.
    """

    name: str
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    others: dict[str, NDArray[np.float32]] = field(repr=False)
    trained: bool = True

    def case(self, scheme: str, share: float) -> Case:
        """Prune a share of every tensor, then round by one of `SCHEMES`."""
        coded = {
            name: quantise(prune(weight, share), scheme, name)
            for name, weight in self.weights.items()
        }
        raw = {name: RawTensor.from_array(tensor) for name, tensor in self.others.items()}
        return Case(self.name, scheme, share, self.trained, coded, raw)


def prune(weights: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Set the smallest magnitudes to 0.

    Parameters
    ----------
    weights : ndarray of float32, any shape
        One tensor.
    share : float
        Share of it that becomes 0, at least; 0 leaves it as it is.
    """
    if share == 0 or not weights.size:
        return weights
    magnitudes = np.abs(weights)
    return np.where(magnitudes <= np.quantile(magnitudes, share), np.float32(0), weights)


def quantise(weights: NDArray[np.float32], scheme: str, name: str) -> QuantizedTensor:
    """Round one tensor by one of `SCHEMES`.

    Of "int8 scale" the integers alone are kept, as a tensor of int8: their scale is not a power of
    two and belongs to whoever runs the network.
    """
    if scheme == "2^-8":
        return quantize(weights, _STEP_LOG2, name=name)
    largest = float(np.abs(weights).max(initial=0.0))
    if scheme == "int8 2^-n":
        step_log2 = math.floor(math.log2(_INT8 / largest)) if largest else 0
        return quantize(weights, step_log2, name=name, bits=8)
    scale = _INT8 / largest if largest else 0.0
    return QuantizedTensor(np.rint(weights * scale).astype(np.int32), 0, "I8")


def _split(name: str, tensors: dict[str, NDArray[np.float32]], *, trained: bool = True) -> Model:
    weights = {key: tensor for key, tensor in tensors.items() if tensor.ndim > 1 and tensor.size}
    others = {key: tensor for key, tensor in tensors.items() if key not in weights}
    return Model(name, weights, others, trained)


def digits_models() -> Iterator[Model]:
    """Train the digits recipe's networks, without and with the rate term."""
    from egret.recipes.digits import OPTIONS, PLAIN_OPTIONS, train_digits

    for title, options in (("digits", PLAIN_OPTIONS), ("digits, rate-trained", OPTIONS)):
        final = _DIGITS_EPOCHS * options.final_epochs // (options.epochs + options.final_epochs)
        short = dataclasses.replace(options, epochs=_DIGITS_EPOCHS - final, final_epochs=final)
        trained = train_digits(lam=options.lam, options=short)
        state = trained.model.state_dict()
        yield _split(title, {key: tensor.numpy().copy() for key, tensor in state.items()})


def draw_weights(
    count: int, shape: float, entropies: Sequence[float]
) -> Iterator[NDArray[np.float32]]:
    """Draw from a generalized Gaussian distribution, scaled so that rounding gives an entropy.

    Parameters
    ----------
    count : int
        Weights, rounded down to a square.
    shape : float
        ν.
    entropies : sequence of float
        Entropies to aim at, in bits per weight.

    Yields
    ------
    ndarray of float32
        A square matrix for each entropy, all of the same draws.
    """
    side = math.isqrt(count)
    draws = sample((side, side), shape, 1.0, np.random.default_rng(_SEED))
    for entropy in entropies:
        scale = _scale_for(draws.reshape(-1)[:_PILOT], entropy)
        yield (draws * scale).astype(np.float32)


def gaussian_sources(count: int) -> Iterator[Case]:
    """Make the synthetic sources: every shape of `SHAPES` at every entropy of `ENTROPIES`.

    Parameters
    ----------
    count : int
        Weights of each source, rounded down to a square.
    """
    for shape in SHAPES:
        weights = draw_weights(count, shape, ENTROPIES)
        for entropy, drawn in zip(ENTROPIES, weights, strict=True):
            values = QuantizedTensor(np.rint(drawn).astype(np.int32), 0, "I32")
            name = f"shape {shape:g}"
            yield Case(name, f"{entropy:g} bits", 0.0, False, {"weight": values}, {})


def _scale_for(draws: NDArray[np.float64], target: float) -> float:
    """Find the factor at which rounded draws have an entropy of `target` bits each."""
    low, high = -8.0, 16.0
    for _ in range(24):
        middle = (low + high) / 2
        counts = count_values(np.rint(draws * 2**middle).astype(np.int32))[1]
        if entropy_bits(counts) < target * draws.size:
            low = middle
        else:
            high = middle
    return float(2**high)


_LAYERS = 4
_WIDTH = 288


def transformer() -> Model:
    """Make a network of 4 million weights in 24 matrices, with norms, in a transformer's shapes.

    Each matrix is drawn from a generalized Gaussian of its own shape, 0.7 to 1.8, and standard
    deviation, 0.02 to 0.06.
    """
    rng = np.random.default_rng(_SEED)
    shapes = {
        "attention.query": (_WIDTH, _WIDTH),
        "attention.key": (_WIDTH, _WIDTH),
        "attention.value": (_WIDTH, _WIDTH),
        "attention.output": (_WIDTH, _WIDTH),
        "feed_forward.up": (4 * _WIDTH, _WIDTH),
        "feed_forward.down": (_WIDTH, 4 * _WIDTH),
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(_LAYERS):
        for part in ("attention", "feed_forward"):
            norm = 1 + 0.1 * rng.standard_normal(_WIDTH)
            tensors[f"layers.{layer}.{part}_norm.weight"] = norm.astype(np.float32)
        for name, shape in shapes.items():
            drawn = sample(shape, rng.uniform(0.7, 1.8), rng.uniform(0.02, 0.06), rng)
            tensors[f"layers.{layer}.{name}.weight"] = drawn.astype(np.float32)
    tensors["norm.weight"] = np.ones(_WIDTH, np.float32)
    return _split("synthetic transformer", tensors, trained=False)


def read_model(path: Path) -> Model:
    """Read a checkpoint of any kind that Egret packs, or llama2.c's layout (`*.bin`).

    Raises
    ------
    EgretError
        The file cannot be read or is of another kind.
    """
    if path.suffix == ".bin":
        return read_llama2c(path)
    tensors = {
        name: np.array(tensor.raw().array(), np.float32)
        for name, tensor in read_checkpoint(path).items()
        if tensor.dtype in FLOAT_DTYPES
    }
    return _split(path.stem, tensors)


_HEADER = struct.Struct("<7i")


def read_llama2c(path: Path) -> Model:
    """Read a language model in llama2.c's first layout.

    Seven 32-bit integers (width, hidden width, layers, heads, key heads, vocabulary, length; a
    negative vocabulary says that the classifier has weights of its own), then float32 tensors
    without names. Matrices that the file stacks over the layers become one for each layer.

    Raises
    ------
    FormatError
        The header makes no sense, or the file is shorter or longer than it says.

    Notes
    -----
    Source: `legacy_export` of https://github.com/karpathy/llama2.c.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise FormatError(f"{path}: found {len(data)} bytes, expected a header of {_HEADER.size}")
    width, hidden, layers, heads, key_heads, vocabulary, length = _HEADER.unpack_from(data)
    rest = (width, hidden, layers, heads, key_heads, abs(vocabulary), length)
    if min(rest) < 1 or width % heads:
        raise FormatError(f"{path}: found the header {rest}, expected a model of llama2.c")
    head = width // heads
    stacked = {
        "attention_norm": (width,),
        "wq": (width, width),
        "wk": (key_heads * head, width),
        "wv": (key_heads * head, width),
        "wo": (width, width),
        "ffn_norm": (width,),
        "w1": (hidden, width),
        "w2": (width, hidden),
        "w3": (hidden, width),
    }
    words = (abs(vocabulary), width)
    # Tables of the rotary embedding, which say nothing that the header does not.
    tables = length * (head // 2) * 2
    # Counted before anything is made of numbers that may be no header's.
    floats = layers * sum(map(math.prod, stacked.values())) + width + tables
    floats += (2 if vocabulary < 0 else 1) * math.prod(words)
    if len(data) != _HEADER.size + 4 * floats:
        raise FormatError(
            f"{path}: found {len(data)} bytes, expected {_HEADER.size + 4 * floats} of a model of "
            "llama2.c with this header"
        )
    shapes: dict[str, tuple[int, ...]] = {"embedding": words}
    for name, shape in stacked.items():
        shapes |= {f"layers.{layer}.{name}": shape for layer in range(layers)}
    shapes["norm"] = (width,)
    if vocabulary < 0:
        shapes["classifier"] = words
    numbers = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32)
    tensors, place = {}, 0
    for name, shape in shapes.items():
        place += tables if name == "classifier" else 0
        tensors[name] = numbers[place : place + math.prod(shape)].reshape(shape)
        place += math.prod(shape)
    return _split(path.stem, tensors)
