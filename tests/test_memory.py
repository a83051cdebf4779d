"""What the machine has, and what a process gives back."""

from pathlib import Path

import pytest

from aef import memory

STATUS = Path("/proc/self/status")


def resident_mb() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


@pytest.mark.skipif(memory._malloc_trim() is None or not STATUS.exists(), reason="not glibc on Linux")
def test_freed_memory_below_a_block_in_use_is_given_back():
    blocks = [bytes(100_000) for _ in range(2000)]
    last = blocks.pop()
    blocks.clear()
    memory.return_free_memory()
    before = resident_mb()
    blocks = [b"1" * 100_000 for _ in range(2000)]
    last = blocks.pop()
    blocks.clear()
    kept = resident_mb()
    memory.return_free_memory()
    assert len(last) == 100_000
    assert resident_mb() < before + 50 and resident_mb() <= kept


def test_a_system_that_does_not_say_is_no_error(monkeypatch):
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.memory_bytes() is None
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.return_free_memory()
