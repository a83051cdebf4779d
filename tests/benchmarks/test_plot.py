"""A GPU's results are drawn where there is no GPU."""

import pytest

from benchmarks import plot, roofline, sheet
from benchmarks.timing import Timing

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
IDENTITY = {"gpu": "NVIDIA H200", "driver": "580", "cuda": "13", "torch": "2", "triton": "3", "cudnn": 9}
IDENTITY |= {"flash_attn": "none", "commit": "abc", "date": "2026-01-01"}


def test_each_shape_is_a_panel_with_its_fastest_contender_first(tmp_path, capsys):
    written = sheet.Sheet(tmp_path, "abc")
    for operator, contender, mode, spent, graph in (
        ("x", "eager", "both", 9.0, None),
        ("x", "ours, triton", "both", 8.0, 5.0),
        ("x", "ours, triton", "forward", 2.0, 1.0),
        ("gemm", "stock", "forward", 7.0, None),
    ):
        timed, work = Timing(spent, spent, spent, graph, 1.0), roofline.Work(1e9, 1e6)
        written.add(sheet.make_row(operator, "s", contender, mode, timed, work, IDENTITY))
    found = plot.panels(sheet.read_rows(written.csv_path))
    assert {title: [(row.contender, row.us) for row in group] for title, group in found.items()} == {
        "x s": [("ours, triton", 5.0), ("eager", 9.0)],
        "gemm s": [("stock", 7.0)],
    }
    assert plot.main([str(written.csv_path)]) == 0
    assert written.csv_path.with_suffix(".png").stat().st_size > 1000
    assert "2 panels in" in capsys.readouterr().out
