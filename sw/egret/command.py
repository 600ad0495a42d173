"""What a subcommand of `egret` is; packages register theirs under `egret.commands`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Command"]


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
