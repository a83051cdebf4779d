"""A whole judgement of an untrained model: every table is made, and none of it flatters."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import aef
from aef.data.chips import Chip, ChipFolder, Label, SourceSeries, write_chip
from aef.data.statistics import Statistics
from aef.data.withheld import WithheldDates
from aef.evaluation.diagnostics import presence_split, source_presence, spread
from aef.evaluation.embedding_features import EMBEDDING
from aef.evaluation.few_shot import judge_labels, year_of
from aef.evaluation.judgement import (
    REFERENCE,
    JudgementError,
    _repeats,
    chips_to_judge,
    judge,
    judge_health,
    mean_of_runs,
    own_dates,
    require_unseen_dates,
    withheld_tasks,
)
from aef.evaluation.labels import label_period, labelled_pixels
from aef.evaluation.probes import ProbeError
from aef.evaluation.reconstruction import choose_dates, write_dates
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period, parse_time

START = parse_time("2018-01-01")
SIDE = 16


def a_chip(number: int) -> Chip:
    """Four fields in the quarters of a chip, two of each class; classes differ in their season."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices((SIDE, SIDE)) // (SIDE // 2)
    fields = 1 + rows * 2 + columns
    classes = (fields % 2).astype(np.int32)
    days = np.arange(0, 360, 24)
    season = np.cos(2 * np.pi * (days[:, None, None] / 365 - 0.4 * classes))
    base = 1500 + 700 * season + 30 * rng.normal(size=(len(days), SIDE, SIDE))
    optical = np.stack([base * (1 + 0.2 * band) for band in range(5)], axis=1).astype(np.uint16)
    s2 = SourceSeries(
        values=optical,
        valid=np.ones((len(days), 1, SIDE, SIDE), bool),
        weight=np.full((len(days), 1, SIDE, SIDE), 255, np.uint8),
        time_ms=START + days.astype(np.int64) * DAY_MS,
    )
    valid = np.zeros((4, 5, SIDE, SIDE), bool)
    valid[:, :2] = True
    s1 = SourceSeries(
        values=np.where(valid, -10 + 2 * classes + rng.normal(size=valid.shape), 0).astype(np.float32),
        valid=valid,
        time_ms=START + np.arange(4, dtype=np.int64) * 80 * DAY_MS,
    )
    label = Label(classes, legend={0: "early", 1: "late"}, fields=fields.astype(np.int32))
    return Chip(
        f"c{number}", "EPSG:32631", (10.0, 0, 1000 * number, 0, -10.0, 0), SIDE, SIDE, 3, 51,
        {"sentinel2": s2, "sentinel1": s1}, labels={"crop": label},
    )  # fmt: skip


@pytest.fixture(scope="module")
def chips():
    return [a_chip(number) for number in range(3)]


@pytest.fixture(scope="module")
def model(tiny_run):
    return aef.load(tiny_run)


@pytest.fixture(scope="module")
def heard():
    """What the judgement said of its progress."""
    return []


@pytest.fixture(scope="module")
def judgement(model, chips, heard, tmp_path_factory):
    path = tmp_path_factory.mktemp("dates") / "withheld.csv"
    assert write_dates(path, choose_dates(chips[:1], BUILT_IN)) == 3
    dates = WithheldDates.read(path)
    asked = {"withheld": dates, "held_out": chips[1:], "period_days": [60, 120], "trials": 2}
    return judge(model, chips[:1], **asked, progress=lambda *step: heard.append(step))


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
    assert list(dict.fromkeys(what)) == ["withheld dates of sentinel2", "label crop", "health"]
    assert set(totals) == {1 + 1 + 2} and list(done) == [0, 1, 1, 2, 2, 3, 4]


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


def test_coordinates_cannot_tell_classes_of_unseen_fields(judgement):
    _, scores = judgement.probes[0].scores["coordinates"]
    assert scores.balanced_accuracy < 0.9 < judgement.probes[0].best


def test_a_probe_for_the_inputs_finds_a_source_that_shines_through(model, chips):
    """An untrained model gives its inputs away; the diagnostic must see it."""
    presence = source_presence(model, chips, lambda chip: year_of(model, chip), trials=3)
    assert set(presence) == {"sentinel2 within places", "sentinel1 within places"}
    assert all(0 <= accuracy <= 1 for accuracy in presence.values())
    assert presence["sentinel2 within places"] > 0.9


class Marked:
    """A model whose embedding has a place's own direction, and moves by `shift(chip)` where Sentinel-1 is missing."""

    inputs = ("sentinel2", "sentinel1")

    def __init__(self, shift):
        self.shift = shift

    def passes(self, chip, periods):
        return [SimpleNamespace(sources=self.inputs)]

    def embed_array(self, chip, periods, leave_out=()):
        rng = np.random.default_rng(int(chip.id[1:]))
        field = rng.normal(size=(64, 1, 1)) + 0.1 * rng.normal(size=(64, SIDE, SIDE))
        return np.stack([field + self.shift(chip) * ("sentinel1" in leave_out)])


def test_only_a_trace_that_places_share_is_a_trace_of_the_sensor():
    places = [a_chip(number) for number in range(8)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))

    def presence(shift):
        return source_presence(Marked(shift), places, lambda chip: None, trials=5)["sentinel1"]

    assert presence(lambda chip: direction) > 0.9
    assert presence(lambda chip: 0.0) == pytest.approx(0.5, abs=0.06)
    # Each place moves in a direction of its own: within a place that is plain to see, elsewhere it is worth nothing.
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    assert presence(lambda chip: own[chip.id]) < 0.7


def test_a_chip_that_nothing_else_saw_in_the_period_is_left_out_of_the_presence_probe():
    class Strict(Marked):
        def passes(self, chip, periods):
            return (
                [SimpleNamespace(sources=("sentinel1",))] if chip.id == places[0].id else super().passes(chip, periods)
            )

        def embed_array(self, chip, periods, leave_out=()):
            assert not leave_out or chip.id != places[0].id, "nothing to embed"
            return super().embed_array(chip, periods, leave_out)

    places = [a_chip(number) for number in range(12)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))
    found = source_presence(Strict(lambda chip: direction), places, lambda chip: None, trials=5)
    assert found["sentinel1"] > 0.9


def test_a_chip_that_the_source_did_not_see_in_the_period_is_left_out_of_the_presence_probe():
    """With and without the source it has one and the same embedding, which would teach the probe that nothing shows."""

    def embeds(chip):
        return int(chip.id[1:]) % 2 == 0

    class Half(Marked):
        def passes(self, chip, periods):
            return super().passes(chip, periods) if embeds(chip) else [SimpleNamespace(sources=("sentinel2",))]

    places = [a_chip(number) for number in range(16)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))
    found = source_presence(Half(lambda chip: direction * embeds(chip)), places, lambda chip: None, trials=5)
    assert found["sentinel1"] > 0.9


def test_of_few_places_the_probe_says_only_what_each_of_them_shows():
    """On two or three places a split by place finds nothing even where they share a trace: it would flatter."""
    places = [a_chip(number) for number in range(3)]
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    assert presence_split(places) == "block"
    found = source_presence(Marked(lambda chip: own[chip.id]), places, lambda chip: None, trials=5)
    assert found["sentinel1 within places"] > 0.9


def test_a_source_that_few_of_many_places_hold_is_judged_within_them():
    """A probe that learns on one place of two would say 0.5 whatever the source leaves behind."""

    class Rare(Marked):
        def passes(self, chip, periods):
            return [SimpleNamespace(sources=("sentinel2", "era", *["sentinel1"] * (chip.id in ("c0", "c1"))))]

    places = [a_chip(number) for number in range(8)]
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    found = source_presence(Rare(lambda chip: own[chip.id]), places, lambda chip: None, trials=3)
    assert list(found) == ["sentinel2", "sentinel1 within places"] and found["sentinel1 within places"] > 0.9


def test_health_takes_one_chip_of_each_place(model):
    """The same ground in another year would look like a collapse, and would count for a place of its own."""
    first = [a_chip(0), a_chip(1)]
    again = [dataclasses.replace(chip, id=f"{chip.id}_again", place=chip.place) for chip in first]
    mixed = [first[0], again[0], first[1], again[1]]
    assert judge_health(model, mixed) == judge_health(model, first) == judge_health(model, mixed, most_places=2)


def test_spread_of_equal_fields_is_a_collapse():
    one = np.zeros((64, 4, 4), np.float32)
    one[3] = 1
    assert spread([one, one])["uniformity"] == pytest.approx(1) and spread([one, one])["norm"] == pytest.approx(1)


def test_variance_is_divided_into_between_and_within_places():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 8, 50, 50))
    shifted = other + 2 * np.eye(8)[0][:, None, None]  # means 2 apart: variance 1 between places, 8 within
    assert spread([one, shifted])["between_places"] == pytest.approx(1 / 9, abs=0.01)
    assert spread([one, one])["between_places"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(spread([one])["between_places"])


def test_units_are_fields_blocks_or_places(chips):
    assert len(np.unique(labelled_pixels(chips, "crop").labelled.units)) == 12
    assert len(np.unique(labelled_pixels(chips, "crop", unit="place").labelled.units)) == 3
    regions = [a_chip(0), a_chip(1)]
    for chip in regions:
        chip.labels["crop"].fields = None
    assert len(np.unique(labelled_pixels(regions, "crop").labelled.units)) == 4  # columns of one class are connected


def test_fields_of_two_chips_are_never_one_unit_whatever_their_parcels_are_numbered():
    """Real parcel numbers have seven digits and more."""
    two = [a_chip(0), a_chip(1)]
    two[0].labels["crop"].fields += 1_000_000
    pixels = labelled_pixels(two, "crop")
    assert len(np.unique(pixels.labelled.units)) == 8
    assert all(len(np.unique(pixels.chip[pixels.labelled.units == unit])) == 1 for unit in pixels.labelled.units)


@pytest.mark.parametrize("unit", ["field", "block"])
def test_the_ground_of_two_years_is_one_unit(unit):
    """Else a field of one year would be tested by what was learnt from the same field of another."""
    first = a_chip(0)
    later = dataclasses.replace(a_chip(0), id="later", place=first.place)
    crop = later.labels["crop"]
    crop.values = 1 - crop.values  # crops rotate, and parcels are numbered and drawn anew
    crop.fields = crop.fields[::-1] + 100
    crop.fields[:3] = 7
    pixels = labelled_pixels([first, later, a_chip(1)], "crop", unit=unit)
    units = pixels.labelled.units
    for number in (0, 1):
        of_chip = units[pixels.chip == number].reshape(SIDE, SIDE)
        assert len(np.unique(of_chip)) == (4 if unit == "field" else 1)
        np.testing.assert_array_equal(of_chip, units[pixels.chip == 0].reshape(SIDE, SIDE))
    assert not set(units[pixels.chip == 2]) & set(units[pixels.chip == 0])


def test_ground_that_only_a_later_year_labels_goes_with_its_field():
    """Half of each field is ignored in the first year: the other half, a year later, is no field of its own."""
    first, later = a_chip(0), a_chip(0)
    first.labels["crop"].ignore = (255,)
    first.labels["crop"].values[:, ::2] = 255
    first.labels["crop"].values[-8:, :8] = 255  # one field is labelled later only
    later = dataclasses.replace(later, id="later", place=first.place)
    later.labels["crop"].fields += 100
    pixels = labelled_pixels([first, later], "crop")
    of_later = pixels.labelled.units[pixels.chip == 1].reshape(2, 8, 2, 8)
    assert (of_later == of_later[:, :1, :, :1]).all() and len(np.unique(pixels.labelled.units)) == 4
    of_first = pixels.chip == 0
    units = of_later[pixels.row[of_first] // 8, 0, pixels.column[of_first] // 8, 0]
    np.testing.assert_array_equal(pixels.labelled.units[of_first], units)


def test_blocks_of_a_large_chip_are_never_one_unit():
    """A chip of more than a thousand blocks a row, 200 m each."""
    chip = a_chip(0)
    values = np.zeros((40, 20_020), np.int32)
    values[20:] = 1
    chip.labels["crop"] = Label(values, legend={0: "early", 1: "late"})
    pixels = labelled_pixels([chip], "crop", unit="block")
    assert len(np.unique(pixels.labelled.units)) == 2 * 1001


def test_a_label_is_judged_in_the_year_around_the_middle_of_its_own_period(chips):
    chip = a_chip(0)
    span = Period(START, START + 1000 * DAY_MS)

    def days(first=None, last=None):
        label = chip.labels["crop"]
        label.valid_start_ms, label.valid_end_ms = (None if d is None else START + d * DAY_MS for d in (first, last))
        found = label_period(chip, "crop", span)
        return (found.start_ms - START) / DAY_MS, (found.end_ms - START) / DAY_MS

    assert days(300, 500) == (217.5, 582.5) and days() == (317.5, 682.5)
    assert days(0, 100) == (0, 365) and days(900, 1000) == (635, 1000)  # no further than there are observations


def test_a_year_that_the_observations_leave_out_is_not_asked_for(model):
    """Frames of two years with two years between them: the middle one holds nothing to embed."""
    chip = a_chip(0)
    for name, series in chip.sources.items():
        times = series.time_ms + (np.arange(len(series.time_ms)) >= 2) * 4 * 365 * DAY_MS
        chip.sources[name] = dataclasses.replace(series, time_ms=times)
    year = year_of(model, chip)
    assert any(year.contains(time) for time in chip.sources["sentinel2"].time_ms.tolist())
    assert np.isfinite(list(judge_health(model, [chip]).values())).all()


def test_a_chip_without_the_label_takes_no_sensor_from_the_baselines(model, chips):
    """Else features of Sentinel-2 alone would stand for the best that can be had by hand."""
    bare = dataclasses.replace(a_chip(7), labels={})
    del bare.sources["sentinel1"]
    found, known = (judge_labels(model, some, "crop", trials=2) for some in ([*chips, bare], chips))
    assert {name: found.accuracy(name) for name in found.scores} == {
        name: known.accuracy(name) for name in known.scores
    }


def test_a_label_that_cannot_be_judged_is_refused_by_name(model, chips):
    with pytest.raises(ProbeError, match="no chip carries the label 'soil'"):
        judge_labels(model, chips, "soil")
    with pytest.raises(ProbeError, match="fewer than two classes"):
        labelled_pixels(chips, "crop", classes=[0])


def test_the_report_is_one_page_with_its_pictures(model, chips, judgement, tmp_path):
    from aef.evaluation.report import write_report

    log = [
        {
            "step": step,
            "reconstruction": 1 / step,
            "uniformity": None,
            "consistency": 0.1,
            "per_source": {"sentinel2": 0.5},
        }
        for step in range(1, 30)
    ]
    path = write_report(tmp_path / "report.html", model, chips, log, judgement, ["aef train <with> & care"])
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 5 and "http" not in page.replace("http-equiv", "")
    assert "aef train &lt;with&gt; &amp; care" in page and "model, 120 d" in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_reconstruction_in_the_report_is_made_without_the_twins_of_its_frame(model):
    from aef.evaluation.report import reconstructions

    class Listener:
        registry, config, targets = model.registry, model.config, ("sentinel2",)

        def reconstruct(self, chip, source, requests, *, without_ms):
            self.forbidden = without_ms
            return np.ones((1, 5, SIDE, SIDE), np.float32)

    chip, listener = a_chip(0), Listener()
    optical, radar = chip.sources["sentinel2"], chip.sources["sentinel1"]
    frame = START + 168 * DAY_MS
    optical.time_ms[8] = frame + 60_000  # the next of the same pass
    radar.time_ms[2] = frame - 60_000
    reconstructions(listener, chip, Period(frame - DAY_MS, frame + DAY_MS))
    assert listener.forbidden == {"sentinel2": [frame, frame + 60_000], "sentinel1": [frame - 60_000]}


def test_pictures_of_similarity_share_a_scale(chips):
    from aef.evaluation.report import embedding_pictures

    fields = [np.random.default_rng(number).normal(size=(8, SIDE, SIDE)) for number in range(2)]
    figure = embedding_pictures(chips[:2], fields, None, "")
    *_, scale = figure.axes
    assert len(figure.axes) == 2 * 2 + 1 and scale.get_xlabel() == "cosine" and scale.get_xlim() == (0, 1)


def test_pictures_of_a_place_that_is_no_square_stand_side_by_side(chips):
    from aef.evaluation.report import embedding_pictures

    fields = [np.random.default_rng(number).normal(size=(8, SIDE // 2, SIDE)) for number in range(3)]
    figure = embedding_pictures(chips[:3], fields, None, "")
    figure.draw_without_rendering()
    for left, right in zip(figure.axes[0:6:2], figure.axes[1:6:2]):
        assert left.get_window_extent().y1 == pytest.approx(right.get_window_extent().y1, abs=1)


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
