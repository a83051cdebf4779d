"""Commands that run a model say and take a device."""

import pytest
import torch

from aef.launcher import embed, evaluate, gaps, leave_out, prove, report, search
from aef.launcher.command import load_model
from aef.mapping.device import find_device


def test_a_device_that_is_not_there_is_one_line(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, reason in (
        ("cuda", "this machine cannot use it"),
        ("cuda:3", "this machine"),
        ("tpu", "expected auto, cpu"),
        ("mps", "expected auto, cpu"),
    ):
        code, said = call("--device", device)
        assert code == 1 and said.startswith("aef embed: error: device ") and reason in said and said.count("\n") == 0


def test_where_there_is_a_gpu_the_device_is_said(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load_model("launcher/embed.py", str(tiny_run), "auto")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_model("launcher/embed.py", str(tiny_run), "cpu")
    assert capsys.readouterr().err == "embed: tiny@7 on cpu\n"
    assert find_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("command", [embed, evaluate, gaps, leave_out, prove, report, search])
def test_every_command_that_runs_a_model_takes_a_device(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "--device DEVICE" in capsys.readouterr().out
