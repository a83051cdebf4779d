"""Figures of every command are files; who draws in a notebook keeps pyplot as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [eval])")

ROOT = Path(__file__).parents[1]
DRAW = """
import sys
from aef.figure_file import new_figure, save_png
figure = new_figure(2, 1)
figure.subplots(1, 2)
save_png(sys.argv[1], figure, dpi=50)
assert "matplotlib.pyplot" not in sys.modules
"""


def test_a_figure_is_a_file_and_leaves_pyplot_alone(tmp_path):
    import matplotlib.image

    subprocess.run([sys.executable, "-c", DRAW, tmp_path / "a.png"], check=True, cwd=ROOT)
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (50, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
