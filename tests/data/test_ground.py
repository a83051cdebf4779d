"""Ground that is kept from training at one place and seen at another."""

import dataclasses

import pytest

from aef.data.chips import ChipFolder, write_chip
from aef.data.ground import describe_shared_ground
from aef.earthengine.grid import ChipGrid, to_utm
from aef.sources import BUILT_IN


@pytest.fixture
def folder_of(make_chip, tmp_path):
    """Chips of 16 px: name → (place, metres east and north of a corner), all but ``zone`` in UTM zone 32."""

    def write(zone=32, **chips):
        for name, (place, east, north) in chips.items():
            grid = ChipGrid("EPSG:32632", 691_000 + east, 5_200_000 + north, 16)
            lon, lat = grid.centre_degrees
            if zone != 32:
                crs = f"EPSG:326{zone}"
                x, y = to_utm(crs).transform(lon, lat)
                grid = ChipGrid(crs, round(x / 10) * 10 - 80, round(y / 10) * 10 + 80, 16)
                lon, lat = grid.centre_degrees
            chip = make_chip(name, sources=("sentinel2",), side=16)
            where = {"crs": grid.crs, "transform": grid.affine, "lon": lon, "lat": lat, "synthetic": False}
            write_chip(tmp_path / f"{name}.npz", dataclasses.replace(chip, place=place, **where), BUILT_IN)
        return ChipFolder(tmp_path, BUILT_IN)

    return write


def test_a_training_chip_over_a_held_out_place_is_named(folder_of):
    folder = folder_of(a=("field", 0, 0), b=("farm", 100, -60), c=("far", 0, 900))
    found = describe_shared_ground(folder, ["field"], ())
    assert found.startswith("1 training chips show ground of 1 places that are held out")
    assert "b.npz of place farm, over a.npz of field" in found
    assert "withheld on some dates" in describe_shared_ground(folder, (), ["farm"])
    assert describe_shared_ground(folder, ["far"], ()) is None and describe_shared_ground(folder, (), ()) is None


def test_chips_of_one_place_neighbours_and_places_that_are_both_kept_share_nothing(folder_of):
    folder = folder_of(a=("field", 0, 0), again=("field", 20, 0), east=("e", 180, 0), north=("n", 0, 160))
    assert describe_shared_ground(folder, ["field"], ()) is None
    folder = folder_of(over=("o", 10, 0))
    assert describe_shared_ground(folder, ["field", "o"], ()) is None
    assert describe_shared_ground(folder, ["o"], ["field"]) is not None


def test_ground_is_compared_across_zones(folder_of):
    folder_of(a=("field", 0, 0))
    assert describe_shared_ground(folder_of(zone=33, b=("farm", 60, 0)), ["field"], ()) is not None


def test_a_run_says_so_when_it_begins(folder_of, tmp_path):
    from aef.config import PRESETS
    from aef.training.new_run import describe_run

    folder_of(a=("field", 0, 0), b=("farm", 100, -60))
    config, said = PRESETS["tiny"], []
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_places=("field",)))
    describe_run(config, tmp_path, tmp_path / "run", said.append)
    assert [line for line in said if "1 training chips show ground of 1 places that are held out" in line]
