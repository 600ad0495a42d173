"""Reading the weights that users have: safetensors files and PyTorch state dicts."""

import json
import mmap
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egret import safetensors_file
from egret.container import INDEX_NAME
from egret.errors import EgretError, FormatError
from egret.safetensors_file import RawTensor

__all__ = ["as_raw_tensor", "read_bytes", "read_checkpoint"]

_ZIP_MAGIC = b"PK\x03\x04"
# torch.save's older format: a pickle of protocol 2 or later.
_PICKLE_MAGICS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_NESTING_KEYS = ("state_dict", "model_state_dict")
_TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}


def read_bytes(path: str | Path) -> memoryview:
    """Map a file into memory.

    Parameters
    ----------
    path : str or Path
        File to read.

    Returns
    -------
    memoryview
        Its bytes, read from the disk as they are used.

    Raises
    ------
    EgretError
        The file does not exist or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            if file.seek(0, 2) == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise EgretError(f"{path}: cannot read this file: {error.strerror}") from error
    except ValueError as error:
        raise EgretError(f"{path}: cannot read this file: {error}") from error


def read_checkpoint(path: str | Path) -> dict[str, RawTensor]:
    """Read the tensors of a safetensors file, its sharded form, or a PyTorch state dict.

    The kind is told by the content, not by the name.

    Parameters
    ----------
    path : str or Path
        A safetensors file; the JSON index of a sharded one (`model.safetensors.index.json`),
        whose shards lie beside it; or what `torch.save(model.state_dict(), path)` wrote, also
        inside a dict under "state_dict" or "model_state_dict".

    Returns
    -------
    dict of str to RawTensor
        Tensors by name.

    Raises
    ------
    FormatError
        Empty, truncated, damaged or of another kind; an entry of the state dict is no tensor;
        it holds objects that PyTorch refuses to load safely.
    EgretError
        The file does not exist or cannot be read, or PyTorch is needed and not installed.
    """
    data = read_bytes(path)
    if len(data) == 0:
        raise FormatError(f"{path}: the file is empty")
    if bytes(data[:4]) == _ZIP_MAGIC or bytes(data[:2]) in _PICKLE_MAGICS:
        return _read_torch(path)
    if bytes(data[:1]) == b"{":
        return _read_sharded(data, path)
    if not safetensors_file.looks_like_safetensors(data):
        raise FormatError(
            f"{path}: found another kind of file, expected safetensors or a PyTorch state dict"
        )
    tensors = safetensors_file.parse(data, path)
    if INDEX_NAME in tensors:
        raise FormatError(f"{path}: is packed already, expected unpacked weights")
    return tensors


def _read_sharded(data: memoryview, path: str | Path) -> dict[str, RawTensor]:
    try:
        places = json.loads(bytes(data).decode("utf-8"))["weight_map"]
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise TypeError
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise FormatError(
            f"{path}: found another kind of file, expected safetensors, the index of a sharded "
            "one, or a PyTorch state dict"
        ) from error
    tensors: dict[str, RawTensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise FormatError(f"{path}: shard {shard!r} does not lie beside the index")
        file = Path(path).parent / shard
        found = safetensors_file.parse(read_bytes(file), file)
        for name in (name for name, place in places.items() if place == shard):
            if name not in found:
                raise FormatError(f"{file}: tensor {name!r} is missing, {path} places it here")
            tensors[name] = found[name]
    return tensors


def _read_torch(path: str | Path) -> dict[str, RawTensor]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EgretError(
            f"{path}: reading a PyTorch file needs PyTorch: pip install 'egret[train]'"
        ) from error
    from pickle import UnpicklingError

    try:
        # An open file: given a name, torch.load would go by its suffix.
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise FormatError(
            f"{path}: holds objects other than tensors, which are not loaded because they "
            "could run code; save model.state_dict() instead"
        ) from error
    except Exception as error:
        # Its reader raises many types for a damaged file, RuntimeError and EOFError among them.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{path}: truncated or damaged PyTorch file: {reason}") from error
    if isinstance(loaded, Mapping):
        for key in _NESTING_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise FormatError(
            f"{path}: found {type(loaded).__name__}, expected a state dict (names to tensors)"
        )
    tensors = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise FormatError(f"{path}: found key {name!r}, expected the name of a tensor")
        try:
            tensors[name] = as_raw_tensor(value, name)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
    return tensors


def as_raw_tensor(value: Any, name: str) -> RawTensor:
    """Take the bytes of a tensor of any library that Egret knows.

    Parameters
    ----------
    value : RawTensor, ndarray or torch.Tensor
        The tensor.
    name : str
        Its name, for error messages.

    Returns
    -------
    RawTensor
        Same dtype, shape and elements.

    Raises
    ------
    FormatError
        No tensor, or one whose dtype or layout safetensors does not have.
    """
    if isinstance(value, RawTensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        try:
            return RawTensor.from_array(np.asarray(value))
        except FormatError as error:
            raise FormatError(f"entry {name!r}: {error}") from error
    # A caller that holds a torch tensor has imported torch.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        raise FormatError(f"entry {name!r}: found {type(value).__name__}, expected a tensor")
    dtype = _TORCH_DTYPES.get(str(value.dtype).removeprefix("torch."))
    if value.layout != torch.strided or dtype is None or value.is_meta:
        raise FormatError(
            f"entry {name!r}: found a tensor of {value.dtype}, {value.layout}, on {value.device}; "
            "expected a dense one of a plain dtype"
        )
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return RawTensor(dtype, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
