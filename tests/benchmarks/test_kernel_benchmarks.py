"""The benchmarks' own honesty: contenders do the same work, a wrong kernel is not timed, nothing is written unmeasured."""

import dataclasses
import sys

import pytest
import torch

from benchmarks import gpu, gpu_tasks, kernels, roofline, scaling, timing

CASES = list(kernels.cases("small"))
CPU = torch.device("cpu")
IDENTITY = {"gpu": "NVIDIA H200", "torch": "2", "triton": "3", "cudnn": 9, "commit": "abc", "date": "2026-01-01"}
SMALL = {case.operator: case for case in reversed(CASES)}


@pytest.mark.parametrize("operator", sorted(SMALL))
def test_every_contender_that_runs_here_does_the_same_work(operator):
    torch.manual_seed(0)
    cases = [case for case in CASES if case.operator == operator]
    if operator == "time_attention":
        cases = [kernels._attention([12] * 3, 5, 2, 16, 1), cases[0]]
    if operator == "temporal_pooling":
        cases = [kernels._pooling([9], [4], 5, 2, 16, 1), kernels._pooling([7, 3], [2, 1], 4, 2, 16, 1)]
    for case in cases[:2]:
        arguments = case.make(CPU, torch.float32)
        wanted = case.contenders["reference"](*arguments)
        cotangents = kernels.cotangents_of(kernels.as_outputs(wanted))
        for name, contender in case.contenders.items():
            if name != "flex compiled" and kernels._runs(contender, arguments, cotangents):
                torch.testing.assert_close(contender(*arguments), wanted, rtol=1e-4, atol=2e-5, msg=name)


def test_a_kernel_that_agrees_passes_and_one_that_does_not_is_named(monkeypatch):
    monkeypatch.setattr(timing, "REPEATS", 2)
    case = kernels._attention([6, 3], 4, 2, 16, 1)
    assert timing.check(case, CPU) is None

    def wrong(*arguments):
        return case.contenders["reference"](*arguments) * 1.02

    calls = iter(range(1000))

    def unsteady(*arguments):
        return case.contenders["reference"](*arguments) + 1e-2 * (next(calls) > 0)

    broken = dataclasses.replace(case, contenders={**case.contenders, "ours": wrong})
    assert "output 0: error" in timing.check(broken, CPU)
    shaky = dataclasses.replace(case, contenders={**case.contenders, "ours": unsteady})
    assert "not bit equal" in timing.check(shaky, CPU)


def test_a_kernel_that_crashes_is_a_verdict(monkeypatch):
    case = kernels._attention([6, 3], 4, 2, 16, 1)
    crashing = dataclasses.replace(case, contenders={**case.contenders, "ours": lambda *a: 1 / 0})
    monkeypatch.setattr(gpu_tasks, "case_named", lambda name: crashing)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: True)
    ((name, verdict),) = [
        event["verdict"] for event in gpu_tasks.perform(gpu_tasks.Task("check", "x"), CPU, {}) if "verdict" in event
    ]
    assert name == "x" and verdict.startswith("FAILED: ZeroDivisionError")


WORKER = """
import json, os, sys
for line in sys.stdin:
    task = json.loads(line)
    if task["name"] == "dies":
        os._exit(7)
    if task["name"] == "hangs":
        import time
        time.sleep(600)
    print(json.dumps({"verdict": [task["name"], str(os.getpid())]}), flush=True)
    print(json.dumps({"done": task["name"] != "breaks"}), flush=True)
"""


def test_tasks_go_on_in_a_new_process_where_one_breaks_dies_or_hangs(monkeypatch):
    monkeypatch.setattr(gpu, "OVERTIME_S", 0.5)
    processes = gpu.Processes([sys.executable, "-c", WORKER])
    names = ("one", "breaks", "other", "dies", "third", "hangs", "last")
    try:
        seconds = {"hangs": 0.0}
        events = [
            list(processes.perform(gpu_tasks.Task("check", name, seconds=seconds.get(name, 120)))) for name in names
        ]
    finally:
        processes.close()
    assert events[3] == [{"unrun": "check dies: its process died, status 7"}]
    assert "was ended" in events[5][0]["unrun"]
    pids = [found[0]["verdict"][1] for found in (events[0], events[1], events[2], events[4], events[6])]
    assert pids[0] == pids[1] and len(set(pids)) == 4


def test_what_a_compiler_must_make_comes_last_and_wrong_kernels_are_not_timed(tmp_path, capsys):
    tasks = gpu.tasks_of(["channel_norm", "block", "steps"])
    assert [task.kind for task in tasks[:2]] == ["check"] * 2
    first = next(number for number, task in enumerate(tasks) if task.compiled)
    assert all(task.compiled for task in tasks[first:])
    done = []

    def perform(task):
        done.append((task.kind, task.name))
        if task.kind == "check":
            yield {"verdict": [task.name, "FAILED: wrong" if "512" in task.name else "passed"]}

    assert gpu.run(gpu.Sheet(tmp_path, "abc"), perform, ["channel_norm"], 100.0) == 1
    assert [name for kind, name in done if kind == "time"] == ["channel_norm 262144x128"] * 2
    (text,) = tmp_path.glob("*.md")
    assert "- channel_norm 16384x512: not timed, FAILED: wrong" in text.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "results")]) == 0
    assert "no GPU" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_rows_are_on_disk_as_soon_as_they_are_known_and_unrun_ones_are_listed(tmp_path):
    sheet = gpu.Sheet(tmp_path, "abc")
    timed, work = timing.Timing(20.0, 19.0, 21.0, 10.0, 1.0), roofline.Work(7.9e9, 0.0)
    sheet.add(gpu_tasks.make_row("x", "s", "ours", "both", timed, work, IDENTITY))
    row = sheet.csv_path.read_text().splitlines()[1]
    assert row.startswith("x,s,ours,both,bfloat16,20.0,19.0,21.0,10.0,790.0")
    sheet.close({"x": "passed"}, ["y: out of time"])
    text = sheet.text_path.read_text()
    assert "| 100% |" in text  # 7.9 GFLOP at 790 TFLOP/s take 10 µs
    assert "- y: out of time" in text


def test_a_second_run_of_a_day_leaves_the_first_one_alone_and_changes_are_told_from_their_commit(tmp_path):
    commits = ("0123456789abcdef", "0123456789abcdef", "0123456789-dirty", "0123456789-dirty")
    stems = [gpu.Sheet(tmp_path, commit).csv_path.stem for commit in commits]
    assert [stem.split("-", 3)[3] for stem in stems] == [
        "0123456789",
        "0123456789-2",
        "0123456789-dirty",
        "0123456789-dirty-2",
    ]


def test_a_contender_that_fails_in_any_way_leaves_the_others_theirs(monkeypatch):
    case = kernels._point_wise("bias_gelu", 4, 8, 1)

    def wrong(*arguments):
        raise TypeError("not like this")

    names = ("reference", "ours", "first", "last")
    broken = dataclasses.replace(case, contenders=dict.fromkeys(names, case.contenders["ours"]) | {"first": wrong})
    usable = iter([True, True, False, False])
    monkeypatch.setattr(gpu_tasks, "case_named", lambda name: broken)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: next(usable))
    monkeypatch.setattr(gpu_tasks, "input_sets", lambda case, device: [case.make(device, torch.float32)])
    monkeypatch.setattr(gpu_tasks, "time_calls", timed_once)
    events = list(gpu_tasks.perform(gpu_tasks.Task("time", "x"), CPU, IDENTITY))
    rows = [(event["row"]["contender"], event["row"]["mode"]) for event in events if "row" in event]
    assert rows == [(name, mode) for name in ("reference", "ours") for mode in timing.MODES]
    unrun = [event["unrun"] for event in events if "unrun" in event]
    assert [one.split(" | ", 1)[1] for one in unrun] == [
        *(f"first | {mode}: TypeError: not like this" for mode in timing.MODES),
        *(f"last | {mode}: the CUDA context is broken" for mode in timing.MODES),
    ]


def timed_once(calls, *settings):
    calls[0]()
    return timing.Timing(1.0, 1.0, 1.0, None, 0)


def test_counts_of_samples_beyond_the_memory_are_listed(monkeypatch):
    def row(step, samples, shape, identity):
        raise torch.OutOfMemoryError("so much")

    monkeypatch.setattr(gpu_tasks, "preset_step", lambda preset: None)
    monkeypatch.setattr(gpu_tasks, "step_row", row)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: True)
    events = list(gpu_tasks.perform(gpu_tasks.Task("steps", "base"), CPU, IDENTITY))
    assert [event["unrun"].split(": ")[0] for event in events[:-1]] == [
        f"step base, {count} sample{'s' * (count > 1)}" for count in gpu_tasks.MICRO_BATCHES["base"]
    ]


def test_floors_follow_the_notes_of_the_roofline():
    floor = roofline.time_attention([32], 256, 8, 64)["forward"].floor_s(roofline.GPUS["h200"])
    assert floor == pytest.approx(7.8e-6, rel=0.01)
    floor = roofline.conv3x3(32, 64, 128)["forward"].floor_s(roofline.GPUS["h200"])
    assert floor == pytest.approx(48.9e-6, rel=0.01)
    assert roofline.main([]) == 0


def test_an_unknown_operator_is_refused_and_help_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        kernels.main(["--only", "foo"])
    assert ended.value.code == 2 and "unknown operator foo: expected some of bias_gelu" in capsys.readouterr().err
    for command in (kernels, gpu):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "time_attention" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("[]", "TypeError"), ("{", "JSONDecodeError")])
def test_a_measurement_that_cannot_be_read_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / "phases.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        scaling.main(["--measured", str(path), "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f"--measured {path}: expected the phases.json" in error and words in error
