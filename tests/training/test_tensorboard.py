"""TensorBoard events say what log.jsonl says, and the validation figure shows every validation."""

import json
import math
import subprocess
import sys

import pytest

from aef.run import Run
from aef.training.curves import write_validation_figure
from aef.training.log import StepLog, read_log, read_validations
from aef.training.tensorboard import flatten

RECORDS = [
    {
        "step": step,
        "loss": 1 / step,
        "text": None,
        "per_source": {"sentinel2": 0.5 / step, "landsat": None},
        "skipped": step // 3,
    }
    for step in range(1, 6)
]
FIGURES = {
    "withheld sentinel2": 0.6,
    "withheld sentinel2 / linear": 1.2,
    "withheld sentinel2: linear interpolation": 0.5,
    "withheld sentinel2: harmonic fit per pixel": 0.55,
    "probe crop": 0.7,
    "probe crop: best baseline": 0.65,
    "norm": 1.0,
    "uniformity": 0.2,
    "effective_rank": 9.0,
    "presence of sentinel2": 0.6,
}


def events(run):
    """Tag → {step: value}, as the library itself reads the folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def write(run, records, validations=()):
    log = StepLog(run, tensorboard=True)
    for record in records:
        log.write(record)
    for step, figures in validations:
        log.validation(step, figures)
    log.close()


def test_events_are_the_numbers_of_the_log(tmp_path):
    write(tmp_path, RECORDS, [(4, FIGURES)])
    found, log = events(tmp_path), read_log(tmp_path)
    assert log == RECORDS
    expected = {}
    for group, records in (("train", log), ("validation", read_validations(tmp_path))):
        for record in records:
            for name, value in flatten(record):
                expected.setdefault(f"{group}/{name}", {})[record["step"]] = value
    assert set(expected) >= {"train/loss", "train/per_source/sentinel2", "validation/presence of sentinel2"}
    assert not {"train/text", "train/per_source/landsat", "train/step"} & set(expected)
    # The library may rewrite characters of a tag, never a number.
    assert len(found) == len(expected)
    for (_, one), (_, other) in zip(sorted(found.items()), sorted(expected.items()), strict=True):
        assert one.keys() == other.keys()
        assert all(math.isclose(one[step], other[step], rel_tol=1e-6) for step in one)


def test_a_resumed_run_hides_what_it_takes_back(tmp_path):
    write(tmp_path, RECORDS)
    StepLog(tmp_path).cut_back(3)
    write(tmp_path, [{"step": 4, "loss": 9.0}])
    assert events(tmp_path)["train/loss"] == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 9.0})


def test_without_being_asked_there_are_no_events(tmp_path):
    log = StepLog(tmp_path)
    log.write(RECORDS[0])
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_run_writes_events_of_every_step_and_a_figure_of_every_validation(chips, tmp_path, make_config):
    from aef.training import Trainer

    run = tmp_path / "run"
    config = make_config(steps=4, validate_every=2, figure_every=2)
    with Trainer(config, chips, run, tensorboard=True, quiet=True) as trainer:
        # Neither may leave the model as it judged it: from then on it would train without the bottleneck's noise.
        assert [trainer.engine.model.training for _ in trainer.steps()] == [True] * 4
    log, validations = read_log(run), read_validations(run)
    assert [record["step"] for record in validations] == [2, 4]
    assert {"norm", "uniformity", "effective_rank", "presence of sentinel2 within places"} <= set(validations[0])
    found = events(run)
    assert found["train/loss"] == pytest.approx({record["step"]: record["loss"] for record in log}, rel=1e-6)
    assert found["validation/norm"] == pytest.approx({record["step"]: record["norm"] for record in validations})
    assert (run / "figures" / "validation.png").stat().st_size > 5000


def test_the_figure_has_a_panel_for_everything_that_was_measured(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    run = Run(tmp_path, None, None, None, (), ())
    records = [{"step": step, **FIGURES} for step in (10, 20, 30)]
    assert write_validation_figure(run, records) is None
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == [
        "withheld sentinel2: L1, standard deviations",
        "few-shot probes, balanced accuracy",
        "was the source present? balanced accuracy",
        "health",
    ]
    legend = {text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()}
    assert legend == {"model", "linear interpolation", "harmonic fit per pixel"}
    (model,) = (line for line in drawn[0].axes[0].lines if line.get_label() == "model")
    assert list(model.get_xdata()) == [10, 20, 30] and list(model.get_ydata()) == [0.6] * 3


def test_a_run_without_matplotlib_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = write_validation_figure(Run(tmp_path, None, None, None, (), ()), [{"step": 1, "norm": 1.0}])
    assert "aef-engine[eval]" in said and not (tmp_path / "figures").exists()


def test_only_a_run_that_validates_needs_what_evaluation_needs():
    lacking = "import sys; sys.modules.update(dict.fromkeys(['scipy', 'sklearn', 'matplotlib']))"
    subprocess.run([sys.executable, "-c", f"{lacking}; from aef.training import Trainer"], check=True)


def test_a_run_that_cannot_validate_is_refused_before_it_begins(chips, tmp_path, make_config, monkeypatch):
    from aef.training import Trainer

    monkeypatch.setitem(sys.modules, "aef.training.validation", None)
    with pytest.raises(ModuleNotFoundError):
        Trainer(make_config(steps=4, validate_every=2), chips, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["deepspeed", "torch.utils.tensorboard"])
def test_a_run_that_lacks_a_package_leaves_its_folder_free(missing, chips, tmp_path, make_config, monkeypatch):
    from aef.training import Trainer

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=missing):
        Trainer(make_config(steps=4), chips, tmp_path / "run", tensorboard=True, quiet=True)
    assert not (tmp_path / "run").exists()


def test_validation_figures_are_valid_json(tmp_path):
    write(tmp_path, [], [(4, FIGURES)])
    (line,) = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 4, **FIGURES}
