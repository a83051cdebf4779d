"""The chips of the training tests serve here too; `aef embed` is called on two of its own."""

import importlib.util
from pathlib import Path

import pytest

from aef.data.chips import Chip, write_chip
from aef.launcher import embed
from aef.launcher.command import run
from aef.sources import BUILT_IN
from tests.launcher.series import YEAR, a_series

_path = Path(__file__).parents[1] / "training" / "conftest.py"
_spec = importlib.util.spec_from_file_location("training_fixtures", _path)
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
chips, pristine_chips = _fixtures.chips, _fixtures.pristine_chips


@pytest.fixture(scope="session")
def two_chips(tmp_path_factory):
    """A folder of two small chips, a and b, of two sources."""
    folder = tmp_path_factory.mktemp("two_chips")
    for number, name in enumerate("ab"):
        sources = {source: a_series(source, number) for source in ("sentinel2", "sentinel1")}
        chip = Chip(name, "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), 8, 8, 3.0, 51.0, sources)
        write_chip(folder / f"{name}.npz", chip, BUILT_IN)
    return folder


@pytest.fixture
def call(tiny_run, two_chips, tmp_path, capsys):
    """Runs `aef embed` and gives its exit code and what it said."""

    def call(*options, checkpoint=tiny_run, data=two_chips, period=YEAR):
        given = ["--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "fields", "--period", period, *options]
        code = run(embed.main, [str(word) for word in given])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if not line.startswith("embed: ")]
        return code, said.out + "\n".join(errors)

    return call


@pytest.fixture
def field(tmp_path):
    """The first file that `call` writes."""
    return tmp_path / "fields" / f"a_{YEAR.replace('/', '_')}.tif"
