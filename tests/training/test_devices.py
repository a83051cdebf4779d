"""How a CPU keeps its memory between steps (`python -m benchmarks.step` measures what that saves); GPUs without bf16."""

import ctypes
import logging
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from aef.config import PRESETS, ConfigError
from aef.training import deepspeed_config
from aef.training.deepspeed_config import precision_of, resolve
from aef.training.devices import attend_without_plans, gpu_without_bf16, keep_freed_memory, peak_flops


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_glibc_takes_the_setting():
    program = "from aef.training.devices import keep_freed_memory; raise SystemExit(not keep_freed_memory())"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


def test_sdpa_chooses_among_pytorchs_own_kernels():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        attend_without_plans()
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        # Chips of their own, whose names hold another's.
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpus_peak_is_not_taken_from_one_whose_name_begins_alike(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert peak_flops(torch.device("cuda", 0), "bfloat16") == peak


# --- a GPU without bf16 ----------------------------------------------------------------------------------------------


@pytest.fixture
def volta(monkeypatch):
    """What torch would say on a machine with a V100: bf16 by emulation only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    deepspeed_config._say_fp32.cache_clear()


def configure(preset, choice, on_gpu=True):
    return resolve(choice, PRESETS[preset], ranks=1, on_gpu=on_gpu, parameters=1)


def test_it_trains_in_fp32_and_says_so_once(volta, caplog):
    with caplog.at_level(logging.WARNING, "aef.training"):
        assert [precision_of(configure("small", "zero1")) for _ in range(2)] == ["float32"] * 2
    assert [r.getMessage() for r in caplog.records] == [
        "training in fp32: Tesla V100 has no bf16, which came with compute capability 8.0"
    ]


def test_bf16_asked_of_it_is_refused(volta, tmp_path):
    with pytest.raises(ConfigError, match=r"Tesla V100 has no bf16: set model\.compute_dtype"):
        configure("base", "zero1")
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}')
    with pytest.raises(ConfigError, match="no bf16 in --deepspeed"):
        configure("small", str(path))


def test_a_gpu_with_bf16_takes_it_and_a_cpu_is_not_asked(volta, monkeypatch):
    assert precision_of(configure("base", "zero1", on_gpu=False)) == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert gpu_without_bf16() is None
    assert precision_of(configure("small", "zero1")) == "bfloat16"
