"""Runs that begin with the weights of another: what is taken over, what begins untrained, what is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from aef.data.chips import read_chip, write_chip
from aef.data.statistics import Statistics
from aef.run import Run, RunError, read_weights
from aef.sources import BUILT_IN, MetadataField, Registry, Transform
from aef.text.tower import TowerIdentity
from aef.training import Trainer
from aef.training.initial import Initial, part_of
from aef.training.new_run import describe_run

OF_SENTINEL1 = {"projectors.sources.sentinel1", "decoders.sentinel1"}


def with_model(config, **model):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def with_data(config, **data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def describe(config, chips, tmp_path, initial, said=None):
    return describe_run(config, chips, tmp_path / "new", (said if said is not None else []).append, initial)


@pytest.fixture(scope="module")
def earlier_chips(pristine_chips, tmp_path_factory):
    """Three of the places, without Sentinel-1, in other units of light: statistics of their own."""
    folder = tmp_path_factory.mktemp("earlier") / "chips"
    folder.mkdir()
    for number in (2, 3, 4):
        chip = read_chip(pristine_chips / f"place{number}.npz", BUILT_IN)
        del chip.sources["sentinel1"]
        chip.sources["sentinel2"].values[:] *= 0.5
        write_chip(folder / f"place{number}.npz", chip, BUILT_IN)
    return folder


@pytest.fixture(scope="module")
def earlier(earlier_chips, tmp_path_factory):
    """A run of two steps over them, which nothing changes."""
    from tests.training.conftest import tiny

    run = tmp_path_factory.mktemp("run") / "run"
    with Trainer(tiny(steps=2), earlier_chips, run, quiet=True) as trainer:
        assert trainer.fit()
    return run


@pytest.fixture
def own_earlier(earlier, tmp_path):
    """A copy of the run for one test."""
    return shutil.copytree(earlier, tmp_path / "earlier")


def test_a_new_run_can_start_from_the_weights_of_another(chips, tmp_path, make_config, train):
    train(make_config(), chips, tmp_path / "first", steps=3)
    weights = tmp_path / "first" / "model.safetensors"
    with Trainer(make_config(), chips, tmp_path / "second", init_from=weights, quiet=True) as trainer:
        found = trainer.engine.weights()
    expected = load_file(weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(RunError, match=r"no\.safetensors: is missing"):
        Trainer(make_config(), chips, tmp_path / "third", init_from=tmp_path / "no.safetensors", quiet=True)
    assert not (tmp_path / "third").exists()  # so that the corrected command finds no run there


@pytest.mark.parametrize("resume", [None, "auto"])
def test_weights_of_another_shape_are_refused_before_anything_is_written(resume, chips, tmp_path, make_config, train):
    other = dataclasses.replace(make_config(), model=dataclasses.replace(make_config().model, blocks=3, time_width=48))
    train(other, chips, tmp_path / "first", steps=3)
    (chips / "stats.json").unlink()
    with pytest.raises(
        RunError, match=r"of another model: expected model.blocks=3 model.time_width=48, found model.blocks=2"
    ):
        Trainer(
            make_config(),
            chips,
            tmp_path / "second",
            init_from=tmp_path / "first" / "model.safetensors",
            resume=resume,
            quiet=True,
        )
    assert not (tmp_path / "second").exists() and not (chips / "stats.json").exists()


def test_a_source_that_is_new_begins_untrained_and_one_that_is_gone_is_left_out(
    earlier, chips, tmp_path, configure, capsys
):
    config = with_model(configure(), inputs=("sentinel2", "sentinel1"), targets=("sentinel2", "sentinel1", "glo30"))
    with Trainer(config, chips, tmp_path / "new", init_from=earlier) as trainer:
        found = trainer.engine.weights()
    with Trainer(config, chips, tmp_path / "fresh", quiet=True) as trainer:
        fresh = trainer.engine.weights()
    before = read_weights(earlier / "model.safetensors").state
    assert {part_of(name) for name in found if name not in before} == OF_SENTINEL1
    for name, weight in found.items():
        assert torch.equal(weight, before.get(name, fresh[name]))
    assert any(not torch.equal(before[name], fresh[name]) for name in before if part_of(name) is None)
    said = capsys.readouterr().err
    assert f"begins with {earlier / 'model.safetensors'}, step 2; untrained yet: decoders.sentinel1, " in said
    assert "left out: decoders.landsat, projectors.sources.landsat" in said
    events = [json.loads(line) for line in (tmp_path / "new" / "events.jsonl").read_text().splitlines()]
    (event,) = [one for one in events if one["event"] == "begun_with"]
    assert event["weights"] == read_weights(earlier / "model.safetensors").sha256 and event["step"] == 2


def test_known_sources_keep_the_statistics_of_the_weights_and_new_ones_take_those_of_the_chips(
    earlier, chips, tmp_path, configure
):
    then, here = Run.read(earlier).statistics, Statistics.read(chips / "stats.json")
    found = describe(configure(), chips, tmp_path, Initial.read(earlier)).statistics
    for name in ("sentinel2", "landsat", "glo30"):
        assert found[name] == then[name] and then[name].mean != here[name].mean
    assert found["sentinel1"] == here["sentinel1"]
    assert set(found.places) == {f"place{number}" for number in range(5)} and found.taken_over is None


def test_chips_are_not_read_for_statistics_that_the_weights_bring(earlier, earlier_chips, tmp_path, configure):
    chips = shutil.copytree(earlier_chips, tmp_path / "chips")
    (chips / "stats.json").unlink(missing_ok=True)
    found = describe(configure(), chips, tmp_path, Initial.read(earlier)).statistics
    assert dict(found) == dict(Run.read(earlier).statistics) and not (chips / "stats.json").exists()


def test_a_band_that_the_weights_never_saw_takes_the_statistics_of_the_chips(own_earlier, chips, tmp_path, configure):
    path = own_earlier / "stats.json"
    entries = json.loads(path.read_text())
    of_source = entries["sources"]["sentinel2"]
    of_source["mean"][1], of_source["std"][1], of_source["count"][1] = 0.0, 1.0, 0
    path.write_text(json.dumps(entries))
    then, here = Statistics.read(path)["sentinel2"], Statistics.read(chips / "stats.json")["sentinel2"]
    found = describe(configure(), chips, tmp_path, Initial.read(own_earlier)).statistics["sentinel2"]
    assert (found.mean[1], found.std[1], found.count[1]) == (here.mean[1], here.std[1], here.count[1])
    assert found.mean[0] == then.mean[0] != here.mean[0] and found.std[2:] == then.std[2:]


def test_given_statistics_are_those_of_the_chips(earlier, chips, tmp_path, configure):
    config = configure({"statistics": "given"})
    found = describe(config, chips, tmp_path, Initial.read(earlier)).statistics
    assert dict(found) == dict(Statistics.read(chips / "stats.json"))


def test_weights_outside_a_run_come_without_statistics_and_it_is_said(earlier, chips, tmp_path, configure, capsys):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(earlier / "model.safetensors", weights)
    with Trainer(configure(), chips, tmp_path / "new", init_from=weights) as trainer:
        assert dict(trainer.run.statistics) == dict(Statistics.read(chips / "stats.json"))
    assert "with the chips' statistics: its own are not beside it" in capsys.readouterr().err


def test_a_checkpoint_brings_what_its_run_knows(earlier, tmp_path):
    whole = Initial.read(earlier)
    for path in (
        earlier / "checkpoints" / "step-00000002",
        earlier / "checkpoints" / "step-00000002" / "model.safetensors",
    ):
        initial = Initial.read(path)
        assert initial.run == whole.run and initial.weights.sha256 == whole.weights.sha256


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"head_width": 8}, "expected model.head_width=16, found model.head_width=8"),  # of the same shapes
        (
            {"blocks": 3, "decoder_gate": True},
            "expected model.blocks=2 model.decoder_gate=False, found model.blocks=3 model",
        ),
    ],
)
def test_a_network_that_computes_something_else_is_refused(earlier, setting, words, chips, tmp_path, configure):
    with pytest.raises(RunError, match=f"of another model: {words}"):
        describe(with_model(configure(), **setting), chips, tmp_path, Initial.read(earlier))


def test_what_does_not_change_the_embedding_may_differ(earlier, chips, tmp_path, configure):
    config = with_model(configure(), kappa=1000.0, compute_dtype="bfloat16", checkpointing="full")
    assert describe(config, chips, tmp_path, Initial.read(earlier)).config.model.kappa == 1000.0


LANDSAT = BUILT_IN["landsat"]
B2 = LANDSAT.bands[0]


@pytest.mark.parametrize(
    ("another", "words"),
    [
        (
            {"bands": (dataclasses.replace(B2, name="blue"), *LANDSAT.bands[1:])},
            "of its bands expected blue in reflectance, found B2 in reflectance",
        ),
        (
            {"bands": (dataclasses.replace(B2, transform=Transform("log", 1.0)), *LANDSAT.bands[1:])},
            "of its transforms expected log 1 0, .*, found log 10000 0",
        ),
        (
            {"metadata": (MetadataField("tilt", "angle_deg"),)},
            r"of its metadata expected tilt \(angle_deg\), found none",
        ),
    ],
)
def test_a_source_of_the_same_name_that_is_another_one_is_refused(earlier, another, words, chips, tmp_path, configure):
    initial = Initial.read(earlier)
    entries = {**initial.run.registry, "landsat": dataclasses.replace(LANDSAT, **another)}
    initial = dataclasses.replace(initial, run=dataclasses.replace(initial.run, registry=Registry(entries.values())))
    with pytest.raises(RunError, match=f"source landsat was another one: {words}.*: give yours another name"):
        describe(configure(), chips, tmp_path, initial)


def test_places_that_the_weights_have_learned_from_cannot_be_held_out(earlier, chips, tmp_path, configure):
    initial = Initial.read(earlier)
    with pytest.raises(
        RunError, match=r"data\.held_out_places: the weights of .* have learned from place3, place4: hold out"
    ):
        describe(configure({"held_out_places": ("place1", "place3", "place4")}), chips, tmp_path, initial)
    run = describe(configure({"held_out_places": ("place1",)}), chips, tmp_path, initial)
    assert set(run.statistics.places) == {"place0", "place2", "place3", "place4"}


def test_dates_that_the_weights_have_learned_from_cannot_be_withheld(
    earlier_chips, earlier, chips, tmp_path, configure
):
    lists = {"both": "place0,2018-03-01\nplace2,2018-04-01\n", "unseen": "place0,2018-03-01\n"}
    for name, rows in lists.items():
        (tmp_path / f"{name}.csv").write_text(f"place,time_utc\n{rows}")
    both, unseen = (configure({"withheld": str(tmp_path / f"{name}.csv")}) for name in lists)
    with pytest.raises(
        RunError, match=r"data\.withheld: 1 dates of .*both.csv at places .* were not withheld from them"
    ):
        describe(both, chips, tmp_path, Initial.read(earlier))
    describe(unseen, chips, tmp_path, Initial.read(earlier))
    with Trainer(both, earlier_chips, tmp_path / "careful", quiet=True) as trainer:
        trainer.save_checkpoint()
    describe(both, chips, tmp_path, Initial.read(tmp_path / "careful"))


def test_a_run_goes_on_with_what_it_began_with(earlier, chips, tmp_path, configure):
    config = configure(steps=2)
    with Trainer(config, chips, tmp_path / "whole", init_from=earlier, quiet=True) as trainer:
        assert trainer.fit()
    with Trainer(config, chips, tmp_path / "new", init_from=earlier, quiet=True):
        pass  # killed before its first checkpoint
    statistics = Run.read(tmp_path / "new").statistics
    with Trainer(config, chips, tmp_path / "new", init_from=earlier, resume="auto", quiet=True) as trainer:
        assert dict(trainer.run.statistics) == dict(statistics)
        assert trainer.fit()
    weights = [read_weights(tmp_path / name / "model.safetensors").sha256 for name in ("whole", "new")]
    assert weights[0] == weights[1]


def test_a_text_head_that_learned_from_another_tower_begins_untrained(own_earlier):
    initial = Initial.read(own_earlier)
    words = {"text_head.out.weight": torch.zeros(1)}
    initial = dataclasses.replace(initial, weights=initial.weights._replace(state={**initial.weights.state, **words}))
    tower = TowerIdentity("ViT-B-32", "openai", "a" * 64, 512, 77)
    own = initial.weights.state
    assert initial.differing_parts(own, tower) == (set(), set())  # nothing is known of its tower
    (own_earlier / "text_tower.json").write_text(tower.to_json())
    assert initial.differing_parts(own, tower) == (set(), set())
    other = dataclasses.replace(tower, weights_hash="b" * 64)
    assert initial.differing_parts(own, other) == ({"text_head"}, {"text_head"})
    assert initial.differing_parts([name for name in own if name not in words], None) == (set(), {"text_head"})
