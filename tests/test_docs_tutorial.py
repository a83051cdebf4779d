"""docs/tutorial.md can be typed: its commands parse, and run in their order on a smaller Earth."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from aef.__main__ import main
from aef.data.chips import read_chip
from aef.launcher.command import with_western_longitudes
from aef.sources import BUILT_IN

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.S | re.M)[1:]  # the first one installs

SMALLER = {
    "--places 48": "--places 6 --chip-px 32",
    "{36..47}": "{03..05}",
    "synthetic_0_00045": "synthetic_0_00005",
    "train.steps=2000": "train.steps=2",
    "aef evaluate ": "aef evaluate --trials 1 --period-days 120 --health-places 2 ",
}


def lines_of(block: str) -> list[str]:
    """Its commands, without comments and with those that go on in the next line in one."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in lines_of(block)]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("aef ")])
def test_a_command_of_the_page_is_understood(line):
    """Its options exist and have values of their type."""
    _, name, *words = shlex.split(line, comments=True)
    launcher = importlib.import_module(f"aef.launcher.{name.replace('-', '_')}")
    launcher._options().parse_args(with_western_longitudes(words, "--at"))


def test_the_page_can_be_typed_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, block in BLOCKS:
        text = block
        for written, smaller in SMALLER.items():
            assert written in PAGE
            text = text.replace(written, smaller)
        if "--at " in text:
            chip = read_chip("chips/synthetic_0_00005.npz", BUILT_IN, sources=())
            text = re.sub(r"--at \S+", f"--at {chip.lon:.5f},{chip.lat:.5f}", text)
        if kind == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), names)
            continue
        for line in lines_of(text):
            if line.startswith("aef "):
                assert main(shlex.split(line, comments=True)[1:]) == 0, line
            else:
                subprocess.run(["bash", "-c", line], check=True)
    for picture in ("chip.png", "maps/classes.png", "similar/search.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
