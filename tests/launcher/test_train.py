"""`aef train`, `aef throughput`: what they print, and what they refuse in one line."""

import json
import re

import pytest

from aef.launcher import pack, throughput, train
from aef.launcher.command import run
from aef.training import planner


def call(command, *arguments):
    return run(command.main, list(map(str, arguments)))


def error_of(capsys, command, *arguments):
    """The one line on standard error of a command that must fail."""
    assert call(command, *arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("command", [train, throughput])
def test_dry_run_prints_what_scripts_read(command, capsys):
    assert call(command, "--config", "tiny", "--dry-run") == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert all(int(lines[name]) > 0 for name in ("parameters", "flops_per_frame", "activation_bytes_per_frame"))


def test_dry_run_prints_the_resolved_settings(capsys):
    # Settings may stand anywhere between options.
    assert call(train, "train.steps=77", "--config", "small", "model.period_bias=false", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "  steps: 77" in text and "  period_bias: false" in text and "expected memory of one rank" in text


def test_every_setting_is_listed_with_its_unit_and_meaning(capsys):
    assert call(train, "--config", "large", "--list-settings") == 0
    text = capsys.readouterr().out
    assert "train.peak_lr = 0.0001: learning rate at the end of the warm-up" in text
    assert "data.chip_px = 128 px: side of the training crop, a multiple of 4" in text


def test_the_plan_shards_states_over_ranks_and_counts_what_travels(capsys):
    arguments = ["--config", "large", "--dry-run", "--device", "cuda", "train.micro_batch=2"]
    text = {}
    for stage in ("zero1", "zero3"):
        assert call(throughput, *arguments, "--ranks", 8, "--deepspeed-config", stage) == 0
        text[stage] = capsys.readouterr().out
    assert "8 ranks x 16 x 2 samples" in text["zero1"] and "bfloat16" in text["zero1"]
    assert "weights: 0.89 GB" in text["zero1"] and "weights: 0.11 GB" in text["zero3"]
    # Partner fields of 128 x 128 x 64 fp32 and their gradients, of every second of 32 samples.
    assert "uniformity partners: 0.13 GB" in text["zero1"]
    assert "ahead of the passes, for uniformity: 23% more operations" in text["zero1"]
    assert "fits on H200 in bfloat16: micro-batch" in text["zero1"]


def test_what_does_not_fit_says_so(capsys):
    assert call(throughput, "--config", "xlarge", "--dry-run", "--device", "cuda") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "does not fit on 24 GB in bfloat16" in lines and not any(
        re.search(r"\b0 with checkpointing", x) for x in lines
    )
    assert any(
        re.fullmatch(r"fits on .*: micro-batch [1-9].*; does not fit with none( or selective)?", x) for x in lines
    )


def test_a_dry_run_on_a_cpu_names_the_precision_of_each_size_and_what_a_gpu_would_take(capsys):
    arguments = ["--config", "large", "--dry-run", "train.micro_batch=2"]
    said = {}
    for device in ("cpu", "cuda"):
        assert call(throughput, *arguments, "--ranks", 8, "--device", device) == 0
        said[device] = capsys.readouterr().out.splitlines()
    (here,) = [line for line in said["cpu"] if line.startswith("expected memory of one rank in float32: ")]
    (there,) = [line for line in said["cuda"] if line.startswith("expected memory of one rank in bfloat16: ")]
    gigabytes = there.split(": ")[1]
    assert here.split(": ")[1] != gigabytes
    assert f"this is for a CPU; expected memory of one rank on a GPU, in bfloat16: {gigabytes}" in said["cpu"]
    assert not any("on a GPU" in line for line in said["cuda"])
    fits = [[line for line in said[device] if line.startswith("fits on ")] for device in ("cpu", "cuda")]
    assert fits[0] == fits[1] and all(" in bfloat16: micro-batch " in line for line in fits[0])


def test_one_rank_is_one_rank(capsys):
    assert call(throughput, "--config", "tiny", "--dry-run") == 0
    assert "per step: 1 rank x 1 x " in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--ranks", "--repeats"])
def test_no_ranks_and_no_repeats_are_one_line(option, capsys):
    line = error_of(capsys, throughput, "--config", "tiny", option, 0)
    assert line == f"aef throughput: error: {option}: expected at least 1, found 0"


def test_a_wrong_word_for_the_kernels_is_one_line_and_leaves_nothing(chips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AEF_KERNELS", "nonsense")
    line = error_of(capsys, train, "--config", "tiny", "--data", chips, "--out", tmp_path / "run")
    assert "AEF_KERNELS: expected one of auto, torch, triton, flash, found 'nonsense'" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "smal"], "unknown config 'smal': expected tiny, small, base, large, xlarge or a .yaml file"),
        (["train.step=5"], "unknown setting train.step: did you mean train.steps?"),
        (["train.steps=many"], "train.steps: expected int, found 'many'"),
        (["--deepspeed-config", "zero9"], "--deepspeed-config zero9: expected single, zero1"),
        (["data.chip_px=18"], "data.chip_px: expected a positive multiple of 4, found 18"),
        (["--resume", "auto", "train.global_batch=0"], "train.global_batch: expected"),
    ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(arguments, words, chips, tmp_path, capsys):
    line = error_of(capsys, train, "--data", chips, "--out", tmp_path / "run", *arguments)
    assert line.startswith("aef train: error: ") and words in line
    assert not (tmp_path / "run").exists()


def test_wrong_data_are_one_line_and_leave_nothing(chips, tmp_path, capsys):
    run_folder = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    line = error_of(capsys, train, "--config", "tiny", "--data", tmp_path / "empty", "--out", run_folder)
    assert "holds no chip (*.npz, *.chips.zip): make some with `aef synthesize`" in line
    line = error_of(capsys, train, "--config", "tiny", "--data", tmp_path / "absent", "--out", run_folder)
    assert "absent: no such folder of chips" in line
    line = error_of(capsys, train, "--config", "tiny", "--data", chips / "place1.npz", "--out", run_folder)
    assert line.endswith("place1.npz: expected a folder of chips, found a file: give the folder it lies in")
    (chips / "place1.npz").write_bytes((chips / "place1.npz").read_bytes()[:3000])
    line = error_of(capsys, train, "--config", "tiny", "--data", chips, "--out", run_folder)
    assert "place1.npz: is damaged or not a chip" in line
    assert not run_folder.exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.withheld=nope.csv", "nope.csv"),
        ("data.held_out_places=[nope]", "nope"),
        ("train.validate_set=mine", "train.validate_set: expected none without data.withheld"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(setting, words, chips, tmp_path, capsys):
    given = ["--config", "tiny", "--data", chips, "--out", tmp_path / "run", setting]
    line = error_of(capsys, train, *given, "--dry-run")
    assert words in line and line == error_of(capsys, train, *given)
    assert call(train, *given[:-1], "--dry-run") == 0 and not (tmp_path / "run").exists()


def test_a_dry_run_refuses_weights_that_the_run_would(chips, tmp_path, capsys):
    given = ["--config", "tiny", "--data", chips, "--out", tmp_path / "run", "train.steps=1"]
    assert call(train, *given) == 0
    capsys.readouterr()
    start = ["--config", "tiny", "--data", chips, "--out", tmp_path / "next", "--init-from"]
    assert call(train, *start, tmp_path / "run", "model.targets=[sentinel2]", "--dry-run") == 0
    assert re.search(r"^begins with .*step 1; left out: .*decoders\.landsat", capsys.readouterr().out, re.M)
    for file, settings, words in (
        (tmp_path / "run" / "model.safetensors", ["model.blocks=1"], "expected model.blocks=2, found model.blocks=1"),
        (tmp_path / "none.safetensors", [], "none.safetensors: is missing"),
    ):
        line = error_of(capsys, train, *start, file, *settings, "--dry-run")
        assert words in line and line == error_of(capsys, train, *start, file, *settings)
    assert not (tmp_path / "next").exists()


def test_statistics_of_another_source_are_refused(chips, tmp_path, capsys):
    entries = json.loads((chips / "stats.json").read_text())
    entries["sources"]["landsat"] = entries["sources"]["sentinel2"]
    (chips / "stats.json").write_text(json.dumps(entries))
    line = error_of(capsys, train, "--config", "tiny", "--data", chips, "--out", tmp_path / "run")
    assert "source landsat: statistics of another source: expected bands B2, B3, B4, B5, B6, B8, B10" in line
    del entries["sources"]["landsat"]
    (chips / "stats.json").write_text(json.dumps(entries))
    line = error_of(capsys, train, "--config", "tiny", "--data", chips, "--out", tmp_path / "run")
    assert "source landsat: no statistics" in line and not (tmp_path / "run").exists()


def test_a_deepspeed_file_may_not_set_what_the_settings_set(chips, tmp_path, capsys):
    file = tmp_path / "mine.json"
    for content, words in (
        ({"optimizer": {"type": "Muon"}}, "optimizer is set by the train.* settings"),
        ({"bf16": {"enabled": True}}, "bf16 at stage 0 loses precision: take zero1, or model.compute_dtype=bfloat16"),
        ({"zero_optimization": {"stage": 1, "sub_group_size": "auto"}}, "may be auto, found sub_group_size"),
    ):
        file.write_text(json.dumps(content))
        arguments = ["--config", "tiny", "--data", chips, "--out", tmp_path / "run", "--deepspeed-config", file]
        assert words in error_of(capsys, train, *arguments)
    file.write_text("{")
    assert "not JSON" in error_of(capsys, train, *arguments)


def test_a_run_through_the_command(chips, tmp_path, capsys):
    arguments = [
        "--config",
        "tiny",
        "--data",
        chips,
        "--out",
        tmp_path / "run",
        "train.steps=3",
        "train.figure_every=9",
    ]
    assert call(train, *arguments) == 0
    assert "learning rate 0 → 0.001 over 1 steps → 0 at step 3" in capsys.readouterr().err
    assert "already holds a run" in error_of(capsys, train, *arguments)
    assert call(train, *arguments, "--resume", "auto", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert call(train, *arguments, "--resume", "auto", "train.steps=2") == 0
    assert "already at step 3, nothing is left of train.steps=2" in capsys.readouterr().err


def test_a_run_goes_on_with_the_packed_copy_of_its_chips(chips, tmp_path, capsys):
    store, settings = tmp_path / "packed", ("train.checkpoint_every=2", "train.figure_every=9", "data.crops_per_chip=1")
    size_mb = (chips / "place1.npz").stat().st_size / 2**20
    assert call(pack, "--data", chips, "--out", store, "--shard-mb", max(1.0, 2.5 * size_mb)) == 0
    assert "5 chips in" in capsys.readouterr().out and not list(store.glob("*.npz"))
    losses = {}
    for name, later in (("plain", chips), ("packed", store)):
        for data, steps in ((chips, 2), (later, 4)):
            run_of = ("--config", "tiny", "--data", data, "--out", tmp_path / name)
            assert call(train, *run_of, "--resume", "auto", "--quiet", f"train.steps={steps}", *settings) == 0
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines if "loss" in line]
    assert len(losses["plain"]) == 4
    assert losses["packed"] == pytest.approx(losses["plain"], rel=1e-5)


def test_a_profile_names_every_phase_of_a_step(chips, tmp_path, capfd):
    out = tmp_path / "profile"
    assert call(throughput, "--config", "tiny", "--data", chips, "--out", out, "--repeats", 1) == 0
    text, errors = capfd.readouterr()
    assert "USDT" not in errors  # the profiler's own announcements
    phases = json.loads((out / "phases.json").read_text())
    expected = {"load", "projectors", "precision", "time", "space", "exchange", "summary", "decoders", "objective"}
    assert expected | {"bottleneck", "optimizer"} <= set(phases["forward"])
    assert {"projectors", "precision", "time", "space", "exchange", "summary", "decoders"} <= set(phases["backward"])
    assert "peak_memory_gb" in text and "frames_per_s" in text
    assert (out / "phases.png").stat().st_size > 5000 and json.loads((out / "trace.json").read_text())["traceEvents"]


def test_the_memory_that_was_measured_stands_beside_what_was_predicted_for_it(capsys, monkeypatch):
    asked, plan = [], planner.plan
    monkeypatch.setattr(planner, "plan", lambda *given, **options: asked.append(options) or plan(*given, **options))
    settings = ["data.chip_px=4", "train.global_batch=1"]
    assert call(throughput, "--config", "tiny", "--repeats", 1, "--deepspeed-config", "zero1", *settings) == 0
    assert "predicted" in capsys.readouterr().out.splitlines()[-1]
    assert asked[-1]["deepspeed_config"] == "zero1" and asked[-1]["ranks"] == 1
