"""A judgement of an untrained model on the places of `four_fields`, made once."""

import pytest

import aef
from aef.data.withheld import WithheldDates
from aef.evaluation.judgement import judge
from aef.evaluation.reconstruction import choose_dates, write_dates
from aef.sources import BUILT_IN
from tests.evaluation.four_fields import a_chip


@pytest.fixture(scope="session")
def chips():
    return [a_chip(number) for number in range(3)]


@pytest.fixture(scope="session")
def model(tiny_run):
    return aef.load(tiny_run)


@pytest.fixture(scope="session")
def heard():
    """What the judgement said of its progress."""
    return []


@pytest.fixture(scope="session")
def judgement(model, chips, heard, tmp_path_factory):
    path = tmp_path_factory.mktemp("dates") / "withheld.csv"
    assert write_dates(path, choose_dates(chips[:1], BUILT_IN)) == 3
    dates = WithheldDates.read(path)
    asked = {"withheld": dates, "held_out": chips[1:], "period_days": [60, 120], "trials": 2}
    return judge(model, chips[:1], **asked, progress=lambda *step: heard.append(step))
