"""What was measured becomes what dispatch chooses, and names where it was measured."""

import json

import pytest

from aef.config import PRESETS
from aef.data.random_batch import random_batch, sources_of
from aef.kernels import tuning
from aef.kernels.implicit_gemm import convolution_sizes
from aef.sources import BUILT_IN
from benchmarks import adopt, roofline, sheet
from benchmarks.cases import cases
from benchmarks.timing import Timing

IDENTITY = {"gpu": "NVIDIA H200", "driver": "580", "cuda": "13", "torch": "2", "triton": "3", "cudnn": 9}
IDENTITY |= {"flash_attn": "none", "commit": "abc", "date": "2026-01-01"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Results and tables in folders of the test's own, the tables with the shipped ones."""
    tables = tmp_path / "configs"
    tables.mkdir()
    for path in tuning.FOLDER.glob("*.json"):
        (tables / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tuning, "FOLDER", tables)
    monkeypatch.setattr(adopt, "ROOT", tmp_path)
    monkeypatch.setattr(adopt, "RESULTS", tmp_path / "results")
    tuning.table.cache_clear()
    yield tmp_path
    tuning.table.cache_clear()


def measure(folder, times):
    """A results file: {case: {(contender, backend): (median µs, graph µs)}}."""
    written = sheet.Sheet(folder / "results", "abc")
    for case in cases("large"):
        for (contender, backend), (median, graph) in times.get(case.name, {}).items():
            timing, work = Timing(median, median, median, graph, 1.0), roofline.Work(1e9, 1e6)
            written.add(
                sheet.make_row(case.operator, case.shape, contender, "both", timing, work, IDENTITY, backend=backend)
            )
    return written.csv_path


def choice(name):
    case = next(case for case in cases("large") if case.name == name)
    entry = next(
        e for e in tuning.table("NVIDIA H200") if e.matches(case.decision.operator, "bfloat16", case.decision.sizes)
    )
    return entry.backend, entry.basis


PRECISION, CONV = "precision_operator 64x64x64x128", "conv3x3 64x64x64x128"
PAPERS = ("time_attention T=103+47", "temporal_pooling T=103", "precision_operator 256", "exchange_down", "exchange_up")
T16, T32 = (f"time_attention T={t}, 8 segments, 256x8x64" for t in (16, 32))


def test_the_fastest_back_end_becomes_the_choice_with_its_file_ratio_and_tiles(folders, capsys):
    ours, library = ("ours, triton", "triton"), ("ours, torch", "torch")
    path = measure(folders, {PRECISION: {ours: (90.0, 80.0), library: (70.0, 100.0)}})
    assert choice(PRECISION) == ("torch", "predicted")
    assert adopt.main([str(path)]) == 0
    (entry,) = tuning.read(tuning.FOLDER / "nvidia-h200.json")
    assert choice(PRECISION) == ("triton", "measured")
    assert entry.why == f"results/{path.name}: 1.25 times as fast as torch at 64x64x64x128"
    assert entry.sizes["frames"] == [33, 64] and entry.dtypes == ["bfloat16"]
    assert entry.config["forward"]["rows"] == 128
    others = next(e for e in tuning.table("NVIDIA H100") if e.operator == "conv3x3")
    assert others.basis == "predicted"  # another GPU was not measured
    assert "1 entries in" in capsys.readouterr().out


def test_entries_reach_from_one_measured_length_to_the_next_and_the_most_valuable_case_decides(folders, capsys):
    ours, flash = ("ours, triton", "triton"), ("torch varlen_attn", "flash")
    path = measure(
        folders,
        {
            T16: {ours: (1.0, None), flash: (2.0, None)},
            T32: {ours: (3.0, None), flash: (2.0, None)},
            "time_attention T=32, 1 segments, 256x8x64": {ours: (1.0, None), flash: (2.0, None)},
            CONV: {("ours, torch", "torch"): (1.0, None)},
        },
    )
    assert adopt.main([str(path)]) == 0
    found = {
        tuple(entry.sizes["max_frames"]): entry.backend for entry in tuning.read(tuning.FOLDER / "nvidia-h200.json")
    }
    assert found == {(1, 16): "triton", (17, 32): "flash"}
    assert f"{CONV}: no other back end than torch was measured" in capsys.readouterr().out
    assert choice(CONV) == ("torch", "predicted")


def test_what_a_run_that_was_cut_off_did_not_measure_stays_predicted(folders):
    ours, library = ("ours, triton", "triton"), ("ours, torch", "torch")
    flash, quick, slow = ("torch varlen_attn", "flash"), (1.0, None), (2.0, None)
    largest = "precision_operator 256x64x64x128"
    path = measure(folders, {T32: {ours: slow, flash: quick}, largest: {ours: quick, library: slow}})
    assert adopt.main([str(path)]) == 0
    assert (choice(T16), choice(T32)) == (("triton", "predicted"), ("flash", "measured"))
    assert (choice(PRECISION), choice(largest)) == (("torch", "predicted"), ("triton", "measured"))
    entries = tuning.read(tuning.FOLDER / "nvidia-h200.json")
    assert next(e for e in entries if e.operator == "conv3x3").sizes["frames"] == [129, adopt.MOST_FRAMES]


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_what_was_measured_at_the_papers_sizes_decides_a_batch_of_its_samples(samples, folders):
    """Whose segments come with a bucketed bound, and whose frames are those of all samples."""
    ours, library = ("ours, triton", "triton"), ("ours, torch", "torch")
    quick, slow = (1.0, None), (2.0, None)
    papers = {
        case.name: case
        for case in cases("large")
        if case.name.startswith(PAPERS) and case.decision.sizes.get("kernel") != 2
    }
    apart = {
        name: {ours: quick, library: slow} for name in (PRECISION, "time_attention T=200+90, 4 segments, 256x8x64")
    }
    times = {name: {ours: slow, library: quick} for name in papers}
    assert adopt.main([str(measure(folders, times | apart))]) == 0
    config = PRESETS["large"]
    batch = random_batch(config, BUILT_IN, *sources_of(config, BUILT_IN), samples)
    for name, case in papers.items():
        asked = dict(case.decision.sizes)
        if "max_frames" in asked:
            asked["max_frames"] = batch.max_frames
        if "frames" in asked:
            asked |= convolution_sizes((batch.total_frames, 64, 64), asked["inputs"], asked["outputs"], 3)
        assert samples > 1 or asked == case.decision.sizes, name  # one sample is what was measured
        table = tuning.table("NVIDIA H200")
        entry = next(e for e in table if e.matches(case.decision.operator, "bfloat16", asked))
        assert (entry.basis, entry.backend) == ("measured", "torch"), name


def test_a_later_run_replaces_what_an_earlier_one_decided_and_keeps_the_rest(folders):
    ours, library = ("ours, triton", "triton"), ("ours, torch", "torch")
    adopt.main([str(measure(folders, {PRECISION: {ours: (1.0, None), library: (2.0, None)}}))])
    times = {("ours, triton", "triton"): (1.0, None), ("torch varlen_attn", "flash"): (2.0, None)}
    adopt.main([str(measure(folders, {PRECISION: {ours: (2.0, None), library: (1.0, None)}, T16: times}))])
    entries = json.loads((tuning.FOLDER / "nvidia-h200.json").read_text())["entries"]
    assert sorted((entry["operator"], entry["backend"]) for entry in entries) == [
        ("conv3x3", "torch"),
        ("time_attention", "triton"),
    ]


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("a,b\n1,2\n", "expected rows of operator")])
def test_a_file_that_is_none_of_these_is_refused(folders, capsys, content, words):
    path = folders / "results" / "x.csv"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        adopt.main([str(path)])
    assert words in capsys.readouterr().err


def test_results_outside_the_repository_cannot_be_named(folders, capsys):
    with pytest.raises(SystemExit):
        adopt.main([str(folders / "elsewhere.csv")])
    assert "expected a file under" in capsys.readouterr().err
