"""Scenes → frames: merging, de-duplication, metadata; in plain Python, without a service."""

import math

import numpy as np

from aef.earthengine.recipes import RECIPES, Scene, Surrounding, month_end_ms, recipe_of, year_ms
from aef.sources import BUILT_IN, Band, Source
from aef.timecode import DAY_MS, parse_period, parse_time

AROUND = Surrounding("EPSG:32632", 8.9, parse_period("2018-06-01/2019-06-01"))


def frames(name, *scenes, around=AROUND):
    return RECIPES[name].frames(scenes, around, BUILT_IN[name])


def granule(index, tile, time, *, take="GS2A_20180701T102021_015780_N02.06", made=1):
    return Scene("S2", index, time, None, {"DATATAKE_IDENTIFIER": take, "MGRS_TILE": tile, "GENERATION_TIME": made})


def test_granules_of_a_datatake_are_one_frame_at_the_earliest_time():
    (frame,) = frames("sentinel2", granule("b", "32TMT", 2000), granule("a", "32TMS", 1000))
    assert frame.time_ms == 1000 and [s.index for s in frame.scenes] == ["a", "b"]
    assert frame.bands == BUILT_IN["sentinel2"].band_names


def test_granules_of_the_chip_s_own_zone_lie_on_top():
    (frame,) = frames("sentinel2", granule("a", "32TMT", 1), granule("b", "31TGN", 2))
    assert [s.index for s in frame.scenes] == ["b", "a"]
    (frame,) = frames(
        "sentinel2",
        granule("a", "32TMT", 1),
        granule("b", "31TGN", 2),
        around=Surrounding("EPSG:32631", 5.9, AROUND.period),
    )
    assert [s.index for s in frame.scenes] == ["a", "b"]


def test_a_reprocessed_granule_replaces_the_older_one():
    old = granule("old", "32TMT", 1, made=10)
    new = granule("new", "32TMT", 1, take="GS2A_20180701T102021_015780_N05.00", made=20)
    for order in ((old, new), (new, old)):
        (frame,) = frames("sentinel2", *order)
        assert [s.index for s in frame.scenes] == ["new"]


def test_a_tile_that_was_received_in_two_parts_keeps_both():
    parts = granule("late", "32TMT", 9, made=20), granule("early", "32TMT", 1, made=10)
    (frame,) = frames("sentinel2", *parts)
    assert frame.time_ms == 1 and [s.index for s in frame.scenes] == ["early", "late"]
    again = granule("again", "32TMT", 9, take="GS2A_20180701T102021_015780_N05.00", made=30)
    (frame,) = frames("sentinel2", *parts, again)
    assert [s.index for s in frame.scenes] == ["again"]


def test_different_datatakes_stay_apart():
    other = "GS2B_20180701T102021_006870_N02.06"
    assert [f.time_ms for f in frames("sentinel2", granule("a", "32TMT", 5), granule("b", "32TMT", 3, take=other))] == [
        3,
        5,
    ]


ORBIT_MS = 5_925_000


def slice_(index, time, held=("VV", "VH"), heading=190.5, direction="ASCENDING"):
    properties = {
        "platform_number": "A",
        "orbitProperties_pass": direction,
        "transmitterReceiverPolarisation": list(held),
        "platformHeading": heading,
    }
    return Scene("S1", index, time, None, properties)


def test_slices_of_one_pass_are_one_frame_with_the_bands_that_it_has():
    # The orbit's number changes at the equator, which may lie between two slices: nothing here depends on it.
    later = slice_("c", 10 + ORBIT_MS, ("HH",), None)
    one, other = frames("sentinel1", slice_("a", 10), slice_("b", 25_010, ("VH", "VV")), later)
    assert one.bands == ("VV", "VH", "angle") and len(one.scenes) == 2 and one.time_ms == 10
    assert np.allclose(one.metadata, (190.5, 98.18))
    assert other.bands == ("HH", "angle") and math.isnan(other.metadata[0])


def test_passes_of_other_orbits_and_directions_stay_apart():
    passes = slice_("a", 0), slice_("b", ORBIT_MS), slice_("c", 180_000, direction="DESCENDING")
    assert [[s.index for s in f.scenes] for f in frames("sentinel1", *passes)] == [["a"], ["c"], ["b"]]


MIDNIGHT_MS = parse_time("2018-07-02")


def row(index, time, zone, collection="LC08"):
    return Scene(collection, index, time, None, {"UTM_ZONE": zone})


def test_of_overlapping_rows_the_nearest_zone_lies_on_top_then_the_latest():
    for rows, top in (
        ((row("far", 20, 33), row("near", 10, 32)), "near"),
        ((row("early", 10, 32), row("late", 20, 32)), "late"),
    ):
        (frame,) = frames("landsat", *rows)
        assert len(frame.scenes) == 2 and frame.scenes[-1].index == top
        assert frame.time_ms == frame.scenes[-1].time_ms
    rows = row("a", 10, 32), row("b", 20, 32, "LC09"), row("c", 10 + ORBIT_MS, 32)
    assert len(frames("landsat", *rows)) == 3


def test_rows_of_a_pass_over_midnight_are_one_frame():
    rows = row("before", MIDNIGHT_MS - 12_000, 32), row("after", MIDNIGHT_MS + 12_000, 32)
    assert [[s.index for s in f.scenes] for f in frames("landsat", *rows)] == [["before", "after"]]


def test_zones_are_compared_across_the_antimeridian():
    fiji = Surrounding("EPSG:32601", -179.5, AROUND.period)
    (frame,) = frames("landsat", row("z60", 20, 60), row("z02", 10, 2), around=fiji)
    assert [s.index for s in frame.scenes] == ["z02", "z60"]


def palsar(index, time, held, direction="Ascending", antenna="Right"):
    properties = {"Polarizations": held, "PassDirection": direction, "AntennaPointing": antenna}
    return Scene("P2", index, time, None, properties)


def test_palsar_images_of_a_pass_are_merged_and_flags_are_kept():
    # Local noon and midnight, when it passes, are midnight UTC near 180 and 0 degrees.
    one, other = frames(
        "palsar2",
        palsar("a", MIDNIGHT_MS - 30_000, ["HH", "HV"]),
        palsar("b", MIDNIGHT_MS + 30_000, ["HH", "HV"]),
        palsar("c", MIDNIGHT_MS + ORBIT_MS, ["HH"], "Descending", "Left"),
        palsar("d", MIDNIGHT_MS + 2 * ORBIT_MS, ["VV", "VH"]),
    )
    assert one.bands == ("HH", "HV", "LIN") and one.metadata == (1.0, 1.0) and len(one.scenes) == 2
    assert other.bands == ("HH", "LIN") and other.metadata == (0.0, 0.0)


def landcover(year, collection):
    return Scene(collection, str(year), year_ms(year))


def test_land_cover_comes_from_the_nearest_mapped_year():
    old, new = BUILT_IN["nlcd"].collections
    mapped = [landcover(y, old) for y in (2011, 2013, 2016, 2019)] + [landcover(2021, new), landcover(2019, new)]

    def chosen(period):
        around = Surrounding("EPSG:32615", -93.0, parse_period(period))
        return [(f.scenes[0].collection, f.scenes[0].index) for f in frames("nlcd", *mapped, around=around)]

    assert chosen("2017-01-01/2018-01-01") == [(old, "2016")]
    assert chosen("2018-06-01/2019-06-01") == [(old, "2019")]
    assert chosen("2021-01-01/2022-01-01") == [(new, "2021")]
    assert chosen("2023-01-01/2024-01-01") == [(new, "2021")]
    assert chosen("2012-01-01/2020-01-01") == [(old, "2011"), (old, "2013"), (old, "2016"), (old, "2019")]
    (frame,) = frames("nlcd", *mapped, around=Surrounding("EPSG:32615", -93.0, parse_period("2016-03-01/2017-03-01")))
    assert (frame.time_ms, frame.end_ms) == (parse_time("2016-01-01"), parse_time("2017-01-01"))


def test_months_carry_their_end_and_the_one_that_ended_before_the_period_is_left_out():
    months = [Scene("E", f"2018{m:02d}", parse_time(f"2018-{m:02d}-01")) for m in (4, 5, 6, 12)]
    kept = frames("era5_land", *months, around=Surrounding("EPSG:32632", 8.9, parse_period("2018-05-15/2019-05-15")))
    assert [f.scenes[0].index for f in kept] == ["201805", "201806", "201812"]
    assert kept[-1].end_ms == parse_time("2019-01-01") == month_end_ms(parse_time("2018-12-01"))


def test_a_yearly_image_of_one_s_own_that_began_before_the_period_lasts_into_it():
    yearly = Source("cover", "a", ("X/Y",), (Band("b", "1", 0, 1),), "target", 500, time="interval")
    recipe, period = recipe_of(yearly), parse_period("2018-12-15/2019-12-15")
    scenes = [Scene("X/Y", str(y), year_ms(y), year_ms(y + 1)) for y in (2017, 2018, 2019)]
    listed = [s for s in scenes if s.time_ms >= period.start_ms - recipe.listed * DAY_MS]
    kept = recipe.frames(listed, Surrounding("EPSG:32632", 8.9, period), yearly)
    assert [f.scenes[0].index for f in kept] == ["2018", "2019"]


def test_tiles_of_a_static_source_are_one_frame():
    (frame,) = frames("glo30", Scene("D", "b", 0), Scene("D", "a", 0))
    assert [s.index for s in frame.scenes] == ["a", "b"]
    assert frames("glo30") == []
