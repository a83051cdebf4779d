"""A training step and the GPU benchmarks on a GPU that is not there: they run, and no step waits for the device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aef.config import PRESETS
from benchmarks import rehearsal, standin_gpu

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(standin_gpu.problem() is not None, reason=str(standin_gpu.problem()))


def rehearse(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rehearsal", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_without_arguments_both_parts_are_rehearsed(monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(standin_gpu, "loaded", lambda: True)
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setattr(rehearsal, "steps", lambda preset: begun.append(preset) or ())
    monkeypatch.setattr(rehearsal, "waits_of_passes", lambda preset: {})
    monkeypatch.setattr(rehearsal, "rehearse_gpu", lambda only: (7, []))
    assert rehearsal.main([]) == 0
    assert begun == list(PRESETS)
    assert "7 rows would run" in capsys.readouterr().out


def test_a_step_never_waits_for_the_gpu_and_keeps_less_the_more_it_makes_again(tmp_path):
    said = rehearse("steps", "--preset", "tiny", "--write", str(tmp_path / "memory.md"))
    assert said.count("waits nowhere") == 7 and "tiny, two passes of a step: waits nowhere" in said
    kept = dict(re.findall(r"recomputing (\w+), ours: ([\d.]+) kB", said))
    eager = dict(re.findall(r"recomputing (\w+), tuned eager: ([\d.]+) kB", said))
    assert float(kept["none"]) > float(kept["selective"]) > float(kept["full"])
    assert all(float(kept[way]) < float(eager[way]) for way in kept)
    assert (tmp_path / "memory.md").read_text().count("| tiny |") == 3


def test_a_capture_in_which_the_host_waits_fails_as_on_a_gpu():
    device = standin_gpu.StandInGpu()
    with device.capture():
        pass
    with pytest.raises(RuntimeError, match=r"stream is capturing: step\.py:3 waits"), device.capture():
        device.waits["step.py:3"] += 1


def test_the_benchmarks_of_a_gpu_run_from_end_to_end():
    said = rehearse("gpu", "--only", "space_attention", "gelu_linear", "residual_norm", "sample_vmf")
    rows = int(re.search(r"benchmarks.gpu: (\d+) rows would run\n$", said).group(1))
    assert rows >= 60


BARE = """
import sys
for name in ("deepspeed", "safetensors", "yaml", "rasterio", "matplotlib", "ee", "open_clip", "requests"):
    sys.modules[name] = None
import benchmarks.gpu, benchmarks.gpu_tasks
from aef.config import PRESETS
from benchmarks.step import PlainStep

PlainStep(PRESETS["tiny"])()
"""


def test_they_need_a_bare_checkout_with_torch_triton_and_numpy_only():
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
