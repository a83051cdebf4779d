"""A whole judgement of an untrained model: every table is made, and none of it flatters."""

import dataclasses

import numpy as np
import pytest

from aef.data.chips import ChipFolder, write_chip
from aef.data.statistics import Statistics
from aef.data.withheld import WithheldDates
from aef.evaluation.embedding_features import EMBEDDING
from aef.evaluation.judgement import (
    REFERENCE,
    Judgement,
    JudgementError,
    WithheldResult,
    _repeats,
    chips_to_judge,
    judge,
    mean_of_runs,
    own_dates,
    require_unseen_dates,
    withheld_tasks,
)
from aef.evaluation.reconstruction import WithheldTable, choose_dates, write_dates
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS
from tests.evaluation.four_fields import START, a_chip


def test_every_table_is_made_and_an_untrained_model_does_not_beat_interpolation(judgement):
    (withheld,) = judgement.withheld
    assert withheld.source == "sentinel2" and withheld.dates == 3 and withheld.places == ["c0"]
    assert withheld.ratio > 1 and withheld.table.mean(REFERENCE) < 0.5
    assert "model, 60 d" in withheld.table.errors
    (probes,) = judgement.probes
    assert (probes.label, probes.classes, probes.units) == ("crop", 2, 8)
    assert probes.best > 0.95 and probes.best_baseline is not None
    low, high = probes.interval
    assert low <= probes.difference <= high
    assert 0.99 < judgement.health["norm"] < 1.01 and set(judgement.health) >= {"uniformity", "effective_rank"}


def test_a_judgement_tells_what_it_is_at_and_how_much_is_left(judgement, heard):
    done, totals, what = zip(*heard)
    total_of = dict(zip(what, totals))
    assert total_of == {
        "withheld dates of sentinel2": 1,
        "label crop, baselines": 2,
        "label crop, embeddings": 2,
        "label crop, probes": 2,
        "health": 2 * (1 + 2),
    }
    assert list(done) == [step for total in total_of.values() for step in range(total + 1)]


def test_what_is_not_judged_is_said_with_its_reason(model, chips):
    one_field = a_chip(3)
    one_field.labels["crop"].values[:] = 0
    unknown = WithheldDates({("c0", "sentinel2"): [START + 7 * DAY_MS]})
    found = judge(model, chips[:1], withheld=unknown, held_out=[one_field], trials=1)
    dates, labels = found.not_judged
    assert "withheld dates of sentinel2, because the list names no frame of it" in dates and dates.endswith("at c0")
    assert labels == "label 'crop': fewer than two classes have 2 fields each"
    text = found.markdown()
    assert f"Not judged:\n\n- {dates}\n- {labels}" in text and found.figures()["not_judged"] == found.not_judged
    elsewhere, none = (
        judge(model, chips[:1], withheld=dates).not_judged
        for dates in (WithheldDates({("atlantis", ""): [START]}), None)
    )
    assert "no chip is of a place of the list (atlantis)" in elsewhere[0] and "the run withheld none" in none[0]
    assert (
        elsewhere[1] == none[1] == "labels, because no chip is of a place that the run held out (data.held_out_places)"
    )


def test_a_source_that_nobody_saw_clear_is_not_judged_and_the_rest_is(model, chips):
    cloudy = a_chip(0)
    series = cloudy.sources["sentinel2"]
    cloudy.sources["sentinel2"] = dataclasses.replace(series, weight=np.zeros_like(series.weight))
    dates = WithheldDates({("c0", "sentinel2"): [START + 24 * DAY_MS]})
    found = judge(model, [cloudy], withheld=dates, held_out=chips[1:], trials=1)
    assert found.not_judged == [
        "withheld dates of sentinel2, because there is no clear pixel at any place: nothing to compare"
    ]
    assert found.probes and found.health


def test_a_place_whose_dates_all_lie_in_one_of_its_chips_is_judged(model, chips):
    """The first chip of a place chooses its dates; those of another year hold none of them."""
    later = dataclasses.replace(a_chip(1), id="later", place=chips[0].place, transform=chips[0].transform)
    for name, series in later.sources.items():
        later.sources[name] = dataclasses.replace(series, time_ms=series.time_ms + 365 * DAY_MS)
    dates = WithheldDates({(place, name): [time] for place, name, time in choose_dates([chips[0], later], BUILT_IN)})
    (result,) = judge(model, [chips[0], later], withheld=dates, period_days=[120]).withheld
    assert result.places == ["c0"] and result.dates == 1 and np.isfinite(result.ratio)


def test_dates_that_the_run_could_train_on_are_refused(model, chips, tmp_path):
    trained = dataclasses.replace(model, statistics=Statistics({}, weighting="clear", date="", places=["c0", "c1"]))
    listed = [("c0", "sentinel2", START), ("c0", "sentinel2", START + 24 * DAY_MS), ("c2", "sentinel2", START)]
    write_dates(tmp_path / "asked.csv", listed)
    write_dates(tmp_path / "own.csv", listed[:1])
    asked = WithheldDates.read(tmp_path / "asked.csv")
    with pytest.raises(JudgementError, match=r"1 frames of the list were free.*c0 sentinel2 2018-01-25"):
        require_unseen_dates(trained, chips, asked, tmp_path / "own.csv")
    with pytest.raises(JudgementError, match="2 frames of the list"):
        require_unseen_dates(trained, chips, asked, None)
    require_unseen_dates(trained, chips, asked, tmp_path / "asked.csv")
    require_unseen_dates(trained, chips[2:], asked, None)  # the run never read c2


def test_a_runs_own_list_that_is_gone_is_not_passed_over(model, tmp_path):
    listed = tmp_path / "dates.csv"
    settings = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, withheld=str(listed)))
    withholding = dataclasses.replace(model, config=settings)
    assert own_dates(model) is None
    with pytest.raises(
        JudgementError, match=r"is not there: put it back, or copy it to withheld.csv in the run folder"
    ):
        own_dates(withholding)
    listed.write_text("place,time_utc\n")
    assert own_dates(withholding) == listed


def test_bands_of_20_m_on_the_10_m_grid_are_judged_on_their_own_pixels(model):
    fine, coarse = a_chip(0), a_chip(1)
    optical = coarse.sources["sentinel2"]
    repeated = optical.values[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3)
    coarse.sources["sentinel2"] = dataclasses.replace(optical, values=repeated)
    for chips, expected in (([coarse], 2), ([fine], 1), ([fine, coarse], 1)):
        dates = WithheldDates({("c0", "sentinel2"): [START], ("c1", "sentinel2"): [START]})
        (task,), _ = withheld_tasks(model, chips, dates, dates)
        assert task.cell_px == expected


def test_cells_of_20_m_may_hold_no_number():
    assert _repeats(np.array([[[[np.nan, np.nan, 1, 1]] * 2]]), 2)
    assert not _repeats(np.array([[[[np.nan, np.nan, 1, 2]] * 2]]), 2)


def test_only_bands_that_training_scored_are_judged(model):
    dates = WithheldDates({("c0", "sentinel2"): [START]})
    objective = dataclasses.replace(model.config.objective, unscored_bands=("sentinel2.B3",))
    partial = dataclasses.replace(model, config=dataclasses.replace(model.config, objective=objective))
    (task,), _ = withheld_tasks(partial, [a_chip(0)], dates, dates)
    assert task.bands == ("B2", "B4", "B8", "B11")


def test_tables_print_and_figures_are_plain_numbers(judgement):
    import json

    text = judgement.markdown()
    assert "| model, 120 d |" in text and "crop: 10-shot" in text
    figures = json.loads(json.dumps(judgement.figures()))
    assert figures["withheld"]["sentinel2"][REFERENCE]["c0"] == judgement.withheld[0].table.place(REFERENCE, "c0")
    assert figures["probes"]["crop"][EMBEDDING] == judgement.probes[0].ours


@pytest.mark.parametrize("count", [12, 13])
def test_of_many_places_tables_name_the_extremes_and_figures_hold_every_one(count):
    table = WithheldTable()
    for number in range(count):
        table.add(REFERENCE, f"p{number:02}", 0.5 + 0.01 * ((number + 3) % count))
    result = WithheldResult("sentinel2", table)
    head, (row,) = result.rows()
    if count == 12:
        assert head == ["predictor", "mean", *result.places] and row[2:4] == ["0.530", "0.540"]
    else:
        assert head == ["predictor", "mean", "least", "greatest"]
        assert row == [REFERENCE, "0.560", "0.500 (p10)", "0.620 (p09)"]
    judgement = Judgement(withheld=[result])
    places = " at 13 places" if count == 13 else ""
    assert judgement.markdown().startswith(f"Withheld dates of sentinel2, {count} in all{places}\n")
    assert set(judgement.figures()["withheld"]["sentinel2"][REFERENCE]) == {"mean", *result.places}


def test_coordinates_cannot_tell_classes_of_unseen_fields(judgement):
    _, scores = judgement.probes[0].scores["coordinates"]
    assert scores.balanced_accuracy < 0.9 < judgement.probes[0].best


def test_runs_are_averaged_beside_their_spread_and_over_linear_interpolation():
    def figures(error):
        table = {REFERENCE: {"mean": 0.5, "p": 0.5}, "model, 120 d": {"mean": error, "p": error}}
        return {"withheld": {"sentinel2": table}, "probes": {}, "health": {}}

    table = mean_of_runs([figures(0.4), figures(0.6), figures(0.35)])
    assert "| model, 120 d | 0.450 | 0.350 | 0.600 | 0.900 |" in table and f"| {REFERENCE} | 0.500 |" in table


def test_runs_of_other_sources_are_not_averaged():
    one = {"withheld": {"sentinel2": {REFERENCE: {"mean": 0.5}}}}
    with pytest.raises(ValueError, match="same sources with withheld dates, found sentinel2; landsat"):
        mean_of_runs([one, {"withheld": {"landsat": {REFERENCE: {"mean": 0.5}}}}])


def test_of_a_large_folder_only_what_is_judged_is_read(tmp_path):
    for number in range(6):
        chip = dataclasses.replace(a_chip(number), place="abcdef"[number // 2 * 2])  # a a c c e e
        write_chip(tmp_path / f"{number}.npz", chip, BUILT_IN)
    folder, dates = ChipFolder(tmp_path, BUILT_IN), WithheldDates({("c", ""): [START], ("e", ""): [START]})
    assert chips_to_judge(folder, {"e"}, dates) == ([2, 3], [4, 5])
    assert chips_to_judge(folder, {"e"}, None) == ([], [4, 5])
    assert chips_to_judge(folder, (), dates, health_places=1) == ([0, 2, 3, 4, 5], [])
    assert chips_to_judge(folder, (), None, health_places=2) == ([0, 2], [])  # one chip a place
