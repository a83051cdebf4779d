"""Statistics over a sample of the chips, by several processes, and of very many places."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from aef.data import statistics as statistics_module
from aef.data import statistics_pass
from aef.data.chip_subset import draw_chips
from aef.data.chips import ChipFolder, write_chip
from aef.data.statistics import Statistics, StatisticsError, TakenOver
from aef.launcher import stats
from aef.sources import BUILT_IN


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    return tmp_path_factory.mktemp("many")


@pytest.fixture
def many(written_once, make_chip):
    """64 chips of 32 places, which no test may change; every eighth holds the terrain model, the last two Landsat too."""
    for number in range(64) if not any(written_once.iterdir()) else ():
        names = ["sentinel2", *(["glo30"] if number % 8 == 0 else []), *(["landsat"] if number >= 62 else [])]
        chip = make_chip(f"p{number // 2:02}@{number}", sources=names, side=8)
        write_chip(written_once / f"{number:02}.npz", chip, BUILT_IN)
    return ChipFolder(written_once, BUILT_IN)


def test_a_draw_is_seeded_and_takes_a_place_twice_only_when_all_have_given_one(many):
    drawn = [index for index, sources in draw_chips(many, range(64), 32, 7) if sources is None]
    assert sorted(many.index.place[drawn].tolist()) == list(range(32))
    assert drawn == sorted(drawn) and len(set(drawn)) == 32
    assert (
        draw_chips(many, range(64), 32, 7) == draw_chips(many, range(64), 32, 7) != draw_chips(many, range(64), 32, 8)
    )
    few = draw_chips(many, range(0, 64, 3), 5, 0)
    assert all(index % 3 == 0 for index, _ in few)


def test_a_rare_source_is_read_from_further_chips_and_for_itself_alone(many):
    for seed in range(20):
        parts = draw_chips(many, range(64), 4, seed)
        drawn = [index for index, sources in parts if sources is None]
        assert len(drawn) == 4
        for name in ("landsat", "glo30"):
            held = many.index.present[:, many.index.sources.index(name)]
            assert held[drawn].any() or any(sources is not None and name in sources for _, sources in parts)
        assert all("sentinel2" not in sources for _, sources in parts if sources is not None)


def test_a_sample_of_chips_tells_mean_and_deviation_of_all(many):
    whole, part = (Statistics.of_chips(many, BUILT_IN, sample=sample) for sample in (None, 16))
    assert part["sentinel2"].count[0] < 0.3 * whole["sentinel2"].count[0]
    scale = np.array(whole["sentinel2"].std)
    assert (np.abs(np.array(part["sentinel2"].mean) - whole["sentinel2"].mean) < 0.1 * scale).all()
    assert np.allclose(part["sentinel2"].std, scale, rtol=0.1)
    assert set(part) == {"sentinel2", "glo30", "landsat"}


def test_a_sample_is_written_down_and_names_all_training_places(many, tmp_path):
    places = {f"p{number:02}" for number in range(30)}
    found = Statistics.of_chips(many, BUILT_IN, places=places, sample=8, seed=3)
    back = Statistics.read(found.write(tmp_path / "stats.json"))
    over = TakenOver.of(many, places, None)
    assert back.taken_over == dataclasses.replace(over, sampled=8, seed=3) and back.taken_over.fits(over)
    assert not back.taken_over.fits(TakenOver.of(many, None, None))
    # Who asks whether a model was trained on a place must not be told of the drawn ones only.
    assert set(back.places) == places
    assert Statistics.of_chips(many, BUILT_IN, sample=64).taken_over.sampled is None


def test_any_number_of_processes_gives_the_same_statistics(many):
    one, three = (Statistics.of_chips(many, BUILT_IN, sample=40, workers=workers) for workers in (1, 3))
    assert dict(one) == dict(three) and one.places == three.places and one.taken_over == three.taken_over


def test_blocks_are_joined_to_what_all_values_at_once_give(many, monkeypatch):
    blocks = Statistics.of_chips(many, BUILT_IN)["sentinel2"]
    monkeypatch.setattr(statistics_pass, "BLOCK", 64)
    whole = Statistics.of_chips(many, BUILT_IN)["sentinel2"]
    assert blocks.count == whole.count and np.allclose(blocks.mean, whole.mean, rtol=1e-12)
    assert np.allclose(blocks.std, whole.std, rtol=1e-9)


def test_the_command_draws_chips_and_says_so(many, tmp_path, capsys):
    places = tmp_path / "held_out.txt"
    places.write_text("p00\n\np01\n")
    out = tmp_path / "stats.json"
    words = ["--data", str(many.path), "--out", str(out), "--chips", "6", "--seed", "5", "--held-out", f"@{places}"]
    assert stats.main(words) == 0
    found = Statistics.read(out)
    assert (found.taken_over.chips, found.taken_over.sampled, found.taken_over.seed) == (60, 6, 5)
    assert "p01" not in found.places and len(found.places) == 30
    assert "30 places, 6 of 60 chips" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--chips"):
        stats.main([*words, "--chips", "0"])
    with pytest.raises(ValueError, match=r"--held-out: .*none\.txt: cannot be read"):
        stats.main([*words, "--held-out", f"@{tmp_path}/none.txt"])


# --- very many places ------------------------------------------------------------------------------------------------


@pytest.fixture
def written(many, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics_module, "MOST_PLACES", 10)
    found = Statistics.of_chips(many, BUILT_IN, sample=4)
    return found, found.write(tmp_path / "stats.json")


def test_names_of_very_many_places_lie_beside_and_are_read_when_asked_for(written, monkeypatch, tmp_path):
    found, path = written
    assert json.loads(path.read_text())["places"]["count"] == 32 and "p07" not in path.read_text()
    back = Statistics.read(path)
    copied = back.write(tmp_path / "run.json")
    assert Statistics.read(copied).places == back.places == found.places
    monkeypatch.setattr(statistics_module, "MOST_PLACES", 100)
    back.write(path)
    assert not path.with_suffix(".places.gz").exists() and Statistics.read(path).places == found.places


def test_a_file_of_places_that_is_gone_or_of_others_is_one_line_when_it_is_asked_for(written):
    found, path = written
    beside = path.with_suffix(".places.gz")
    content = beside.read_bytes()
    beside.unlink()
    back = Statistics.read(path)
    assert dict(back) == dict(found)
    with pytest.raises(StatisticsError, match=r"stats\.places\.gz: cannot be read"):
        _ = back.places
    beside.write_bytes(content[:-9])
    with pytest.raises(StatisticsError, match="cannot be read"):
        _ = Statistics.read(path).places
    other = statistics_module.PlacesFile(beside)
    other.write(["elsewhere"])
    with pytest.raises(StatisticsError, match="holds the places of other statistics"):
        _ = Statistics.read(path).places
