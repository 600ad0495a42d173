"""The command line: what it lists, and how it fails."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest

from egret import cli
from egret.command import Command
from egret.errors import EgretError, FormatError

COMMANDS = [
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
]


def egret(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "egret.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the registered commands by one, `try`, that runs the given function."""

    def replace(run: Callable[[argparse.Namespace], None], extra: str | None = None) -> None:
        command = Command("try", "a summary", "a description", lambda parser: None, run, extra)
        monkeypatch.setattr(cli, "_commands", lambda: [command])

    return replace


def test_every_command_is_registered() -> None:
    assert sorted(entry.name for entry in entry_points(group="egret.commands")) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_entry_point_is_that_command(name: str) -> None:
    (entry,) = entry_points(group="egret.commands", name=name)
    command = entry.load()
    assert isinstance(command, Command)
    assert command.name == name


def test_help_lists_the_commands_in_order() -> None:
    result = egret("--help")
    assert result.returncode == 0, result.stderr
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("    ")]
    assert [word for word in listed if word in COMMANDS] == COMMANDS
    assert result.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: egret {name}")
    assert f"egret {name}" in text.split("options:")[0].split("\n\n", 1)[1], "no example"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("egret 0.")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--wings"], ["try", "--wings"]])
def test_wrong_usage_exits_2(
    arguments: list[str], only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    only(lambda namespace: None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: egret" in capsys.readouterr().err


def test_unknown_command_names_the_known_ones() -> None:
    result = egret("fly")
    assert result.returncode == 2
    assert "'fly'" in result.stderr
    assert all(name in result.stderr for name in COMMANDS)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EgretError("w.egret: found 3, expected 4"), "w.egret: found 3, expected 4"),
        (FormatError("a message\n  on two lines"), "a message on two lines"),
        (
            FileNotFoundError(2, "No such file or directory", "in.egret"),
            "in.egret: No such file or directory",
        ),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    line: str,
    only: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(namespace: argparse.Namespace) -> None:
        raise error

    only(run)
    assert cli.main(["try"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"egret: error: {line}\n"


def test_success_is_0(only: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    only(lambda namespace: print("done"))
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("done\n", "")


def test_a_bug_keeps_its_traceback(only: Callable[..., None]) -> None:
    def run(namespace: argparse.Namespace) -> None:
        raise ZeroDivisionError("a bug")

    only(run)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["try"])


def test_missing_extra_says_what_to_install(
    only: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(namespace: argparse.Namespace) -> None:
        __import__("amaranth.hdl")

    for module in [name for name in sys.modules if name.partition(".")[0] == "amaranth"]:
        monkeypatch.delitem(sys.modules, module)
    # None in sys.modules makes the import system report the module as not found.
    monkeypatch.setitem(sys.modules, "amaranth", None)
    only(run, extra="hw")
    assert cli.main(["try"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "egret try needs the module 'amaranth" in error
    assert error.endswith("pip install 'egret[hw]'\n")


@pytest.mark.parametrize("name", ["egret.absent", "egret_sim.absent"])
def test_missing_own_module_is_a_bug(name: str, only: Callable[..., None]) -> None:
    def run(namespace: argparse.Namespace) -> None:
        __import__(name)

    only(run, extra="hw")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["try"])


def test_reader_that_goes_away() -> None:
    """`egret ... | head` ends quietly."""
    code = """
import sys
from egret import cli
from egret.command import Command
def run(arguments):
    for line in range(100000):
        print(line)
cli._commands = lambda: [Command("try", "", "", lambda parser: None, run)]
sys.exit(cli.main(["try"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert error == b""
