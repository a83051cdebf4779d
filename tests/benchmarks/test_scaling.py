"""Predictions of scaling: what is refused, and a row for every stage, batch and number of GPUs."""

import pytest

from benchmarks import scaling


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("[]", "TypeError"), ("{", "JSONDecodeError")])
def test_a_measurement_that_cannot_be_read_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / "phases.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        scaling.main(["--measured", str(path), "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f"--measured {path}: expected the phases.json" in error and words in error


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.stepz=1"], "stepz"),
        (["--config", "huge"], "unknown config 'huge'"),
        (["data.frame_bucket=64"], "data.frame_bucket: 63 filler frames"),
        (["model.targets=[nowhere]"], "unknown source 'nowhere'"),
        (["--mfu", "0"], "--mfu: expected more than 0, at most 1, found 0"),
        (["--mfu", "40"], "--mfu: expected more than 0, at most 1, found 40"),
        (["--overlap", "-0.1"], "--overlap: expected 0 or more, at most 1, found -0.1"),
        (["--node-link-gb-s", "nan"], "--node-link-gb-s: expected more than 0, found nan"),
    ],
)
def test_scaling_refuses_settings_as_training_does(tmp_path, capsys, settings, words):
    with pytest.raises(SystemExit) as ended:
        scaling.main([*settings, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scaling_is_predicted_for_every_stage_batch_and_number_of_gpus_and_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(scaling, "GPUS", (1, 8))
    assert scaling.main(["--config", "tiny", "--out", str(tmp_path)]) == 0
    assert "wrote" in capsys.readouterr().out
    rows = [line.split(",") for line in (tmp_path / "scaling.csv").read_text().splitlines()[2:]]
    assert len(rows) == len(scaling.STAGES) * len(scaling.BATCHES) * 2
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
