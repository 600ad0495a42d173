"""Egret: rate-constrained training, exp-Golomb packing, and the stream an accelerator eats.

`pack` writes a network's weights to a packed file and `load` reads them back; `compile` turns a
PyTorch model into the integer network that the accelerator runs; `RateRegularizer` trains weights
that compress, and `StraightThrough` rounds them while they are trained. They are imported when
first used, so that `import egret` is quick and needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egret.compiler import compile_network as compile
    from egret.packing import load, pack
    from egret.qat import StraightThrough
    from egret.rate import RateRegularizer

    __version__: str

__all__ = ["RateRegularizer", "StraightThrough", "__version__", "compile", "load", "pack"]

_HOMES = {
    "RateRegularizer": ("egret.rate", "RateRegularizer"),
    "StraightThrough": ("egret.qat", "StraightThrough"),
    "compile": ("egret.compiler", "compile_network"),
    "load": ("egret.packing", "load"),
    "pack": ("egret.packing", "pack"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("egret")
    if name not in _HOMES:
        raise AttributeError(f"module 'egret' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
