"""How a CPU keeps its memory between steps; what that saves is measured by `python -m benchmarks.step`."""

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from aef.training.devices import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_glibc_takes_the_setting():
    program = "from aef.training.devices import keep_freed_memory; raise SystemExit(not keep_freed_memory())"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False
