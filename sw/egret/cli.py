"""The `egret` command: finds the registered subcommands and runs one."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version

from egret.command import Command
from egret.errors import EgretError

__all__ = ["main"]

_OWN_PACKAGES = ("egret", "egret_hw", "egret_sim")
_ORDER = (
    "demo",
    "train",
    "pack",
    "unpack",
    "inspect",
    "image",
    "estimate",
    "explore",
    "rtl",
    "sim",
)


def _commands() -> list[Command]:
    found = {entry.name: entry.load() for entry in entry_points(group="egret.commands")}
    known = [found.pop(name) for name in _ORDER if name in found]
    return known + [found[name] for name in sorted(found)]


def _build_parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="egret",
        description="Train networks whose weights compress, pack the weights into an exp-Golomb "
        "stream, and generate and simulate the accelerator that runs them.",
        epilog="Each command explains itself: egret COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"egret {version('egret')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(subparser)
        subparser.set_defaults(selected=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments without the program's name; those of the process when absent.

    Returns
    -------
    int
        0 on success, 1 after an error that was printed as one line on standard error.
        Wrong usage exits with 2 from argparse.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without ν or × shows a question mark instead of failing.
            stream.reconfigure(errors="replace")
    selected = _build_parser(_commands()).parse_args(arguments)
    command: Command = selected.selected
    try:
        command.run(selected)
        sys.stdout.flush()
    except EgretError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").split(".")[0] in _OWN_PACKAGES:
            raise
        message = (
            f"egret {command.name} needs the module {error.name!r}: "
            f"pip install 'egret[{command.extra}]'"
        )
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep the interpreter from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        message = f"not enough memory: {error}" if str(error) else "not enough memory"
    except KeyboardInterrupt:
        message = "interrupted"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
    else:
        return 0
    print(f"egret: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
