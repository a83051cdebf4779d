"""Training learns from texts whose vectors lie beside its chips, and never runs the tower itself."""

import dataclasses
import json

import pytest

import aef
from aef.config import TINY
from aef.data.synthetic import Earth, write_earth
from aef.launcher.command import run
from aef.launcher.text import main as text_command
from aef.run import TEXT_TOWER
from aef.text.cache import FOLDER
from aef.text.tower import TextTower, TowerError

pytest.importorskip("deepspeed")

STEPS = 6


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Four places with captions and their vectors: the steps of the test are three epochs."""
    folder = tmp_path_factory.mktemp("chips")
    list(write_earth(Earth(0, 16, 1, ("sentinel2",)), folder, 4))
    assert text_command(["--encode", str(folder), "--tower", "tiny"]) == 0
    return folder


def config(**data):
    settings = dataclasses.replace(TINY.train, steps=STEPS, global_batch=2, micro_batch=2, checkpoint_every=3)
    return dataclasses.replace(TINY, train=settings, data=dataclasses.replace(TINY.data, **data))


def test_texts_are_learnt_from_over_epochs_without_running_the_tower(chips, tmp_path, monkeypatch):
    from aef.training import Trainer

    monkeypatch.setattr(TextTower, "__init__", lambda *_, **__: pytest.fail("training ran the tower"))
    out = tmp_path / "run"
    with Trainer(config(), chips, out, quiet=True) as trainer:
        before = trainer.run.config.model.text_dim
        assert trainer.fit()
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    values = [record["text"] for record in records if "text" in record]
    assert before == 64 and any(value is not None for value in values)
    identity = json.loads((out / TEXT_TOWER).read_text())
    assert identity["name"] == "tiny" and aef.load(out).network.text_head is not None
    # Going on needs the same vectors.
    moved = tmp_path / "moved"
    (chips / FOLDER).rename(moved)
    try:
        with (
            pytest.raises(TowerError, match="holds no text vectors of tiny"),
            Trainer(
                dataclasses.replace(config(), train=dataclasses.replace(config().train, steps=STEPS + 1)),
                chips,
                out,
                resume="auto",
                quiet=True,
            ) as trainer,
        ):
            trainer.fit()
    finally:
        moved.rename(chips / FOLDER)


def test_chips_without_vectors_train_without_a_text_head(chips, tmp_path):
    from aef.training.new_run import describe_run

    lines = []
    assert describe_run(config(), chips, tmp_path / "with", lines.append).config.model.text_dim == 64
    vectors = chips / FOLDER
    vectors.rename(tmp_path / "away")
    try:
        assert describe_run(config(), chips, tmp_path / "without", lines.append).config.model.text_dim == 0
    finally:
        (tmp_path / "away").rename(vectors)


def test_another_tower_beside_the_chips_is_refused(chips, capsys):
    assert run(text_command, ["--encode", str(chips), "--tower", "ViT-Z-0"]) == 1
    assert "unknown text tower 'ViT-Z-0'" in capsys.readouterr().err
