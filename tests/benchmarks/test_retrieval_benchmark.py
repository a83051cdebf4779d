"""The chips that `python -m benchmarks.retrieval` trains on."""

import pytest

from aef.data.chips import read_chip
from aef.data.synthetic import Earth, write_earth
from aef.sources import BUILT_IN
from benchmarks import retrieval


def captions(folder):
    chips = [read_chip(path, BUILT_IN) for path in sorted(folder.glob("*.npz"))]
    return [point.text for chip in chips for point in chip.texts if retrieval.about_a_field(chip, point)]


def test_captions_are_dealt_out_anew_also_where_an_interrupted_command_left_half_of_them(tmp_path, monkeypatch):
    chips, folder = tmp_path / "true", tmp_path / "permuted"
    list(write_earth(Earth(0, retrieval.CHIP_PX, 1, retrieval.SOURCES), chips, 2))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(retrieval, "permute_captions", lambda partial, seed: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retrieval.copy_permuted(chips, folder, 0)
    assert not folder.exists()
    retrieval.copy_permuted(chips, folder, 0)
    own, dealt = captions(chips), captions(folder)
    assert own != dealt and sorted(own) == sorted(dealt)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["permuted", "true"]
