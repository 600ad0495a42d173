"""Parameter files: YAML, of which JSON is a part."""

from pathlib import Path

import yaml

from egret.errors import EgretError
from egret.params import AcceleratorParams

__all__ = ["load_params"]


def load_params(path: str | Path) -> AcceleratorParams:
    """Read a parameter set from a YAML or JSON file.

    Parameters
    ----------
    path : str or Path
        File with a mapping of `AcceleratorParams` fields.

    Returns
    -------
    AcceleratorParams

    Raises
    ------
    EgretError
        The file is missing, is not such a mapping, or holds a wrong parameter.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EgretError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EgretError(f"{path}: not a readable text file: {error}") from error
    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EgretError(f"{path}: not YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise EgretError(
            f"{path}: found {type(mapping).__name__}, expected a mapping of parameter names"
        )
    return AcceleratorParams.from_mapping(mapping, source=str(path))
