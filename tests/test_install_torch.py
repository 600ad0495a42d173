"""Where torch is taken from: never CUDA libraries by default on Linux."""

from pathlib import Path

import pytest

import install_torch

ROOT = Path(__file__).parent.parent
PYTORCH = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_default_asks_only_for_cpu_builds(platform: str) -> None:
    assert install_torch.attempts("2.13.0", "", platform) == [
        ["torch==2.13.0+cpu"],
        ["torch==2.13.0+cpu", "--index-url", PYTORCH],
    ]


def test_default_on_macos_has_one_build() -> None:
    assert install_torch.attempts("2.13.0", "", "darwin") == [["torch==2.13.0"]]


def test_user_names_an_index() -> None:
    assert install_torch.attempts("2.13.0", PYTORCH, "linux") == [
        ["torch==2.13.0", "--index-url", PYTORCH]
    ]


def test_user_asks_for_what_pip_chooses() -> None:
    assert install_torch.attempts("2.13.0", "default", "linux") == [["torch==2.13.0"]]


def test_version_comes_from_the_constraints() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\ntorch=={install_torch.pinned(text)}\n" in text
    with pytest.raises(SystemExit, match=r"constraints\.txt pins no torch"):
        install_torch.pinned("numpy==2.4.6\ntorchvision==0.28\n")
