"""What a subcommand of `egret` is; packages register theirs under `egret.commands`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from egret.errors import EgretError
from egret.params import PRESETS, AcceleratorParams, load_params

__all__ = ["Command", "add_params_arguments", "chosen_params", "refuse_same_file"]


@dataclass(frozen=True)
class Command:
    """A subcommand.

    The module that defines it must import cheaply and without any extra: heavy imports belong
    inside `run`, so that `egret --help` is quick and works on the base install.

    Parameters
    ----------
    name : str
        Name on the command line.
    summary : str
        One line for the list of commands.
    description : str
        What it does, for a newcomer, with an example; shown by `--help` as it stands.
    configure : Callable[[argparse.ArgumentParser], None]
        Adds the arguments.
    run : Callable[[argparse.Namespace], None]
        Does the work; raises `EgretError` on bad input.
    extra : str or None
        Extra of the distribution that `run` needs beyond the base install.
    """

    name: str
    summary: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    extra: str | None = None


def refuse_same_file(source: Path, output: Path) -> None:
    """Refuse an output that would replace the input.

    Raises
    ------
    EgretError
        Both names are one existing file.
    """
    if source.exists() and output.exists() and source.samefile(output):
        raise EgretError(f"{output}: is the input, expected another name for the output")


def add_params_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--preset` and `--config`, of which a user gives at most one."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="m-ddr3",
        help="named parameter set of the accelerator (default: m-ddr3)",
    )
    which.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON file with parameters of your own"
    )


def chosen_params(arguments: argparse.Namespace) -> AcceleratorParams:
    """Return the parameter set that `--preset` or `--config` names.

    Raises
    ------
    EgretError
        The file is missing or wrong.
    """
    if arguments.config is not None:
        return load_params(arguments.config)
    return PRESETS[arguments.preset]
