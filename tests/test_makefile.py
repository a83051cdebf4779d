"""What `make` hands to its commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(("target", "accelerator"), [("demo", ""), ("test", "cpu"), ("test-long", "cpu")])
def test_only_tests_are_kept_from_the_gpu(target, accelerator):
    env = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "MAKEFLAGS")}
    # The same target with another recipe and without its installation.
    recipe = f'{target}: ; @echo "[$$DS_ACCELERATOR]"'
    text = (ROOT / "Makefile").read_text(encoding="utf-8") + f"\n{recipe}\n"
    command = ["make", "--no-print-directory", "-f", "-", "-o", ".venv/.installed", target]
    done = subprocess.run(command, input=text, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"[{accelerator}]", done.stderr
