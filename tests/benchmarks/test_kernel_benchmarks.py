"""The benchmarks' own honesty: contenders do the same work, a wrong kernel is not timed, nothing is written unmeasured."""

import dataclasses
import re
import subprocess
import sys
import weakref

import pytest
import torch

from aef.kernels import dispatch, tuning
from benchmarks import gpu, gpu_tasks, kernels, roofline, sheet, steps, timing
from benchmarks.cases import attention, cases, pointwise, pooling
from benchmarks.cases import case as contest

CASES = list(cases("small"))
CPU = torch.device("cpu")
IDENTITY = {"gpu": "NVIDIA H200", "driver": "580", "cuda": "13", "torch": "2", "triton": "3", "cudnn": 9} | {
    "flash_attn": "none",
    "commit": "abc",
    "date": "2026-01-01",
}
SMALL = {case.operator: case for case in reversed(CASES)}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("operator", sorted(SMALL))
def test_every_contender_that_runs_here_does_the_same_work(operator):
    torch.manual_seed(0)
    chosen = [case for case in CASES if case.operator == operator][:2]
    if operator == "time_attention":
        chosen = [attention.time_attention(lengths, 5, 2, 16, 1) for lengths in ([11] * 3, [5, 3, 5, 2])]
    if operator == "temporal_pooling":
        chosen = [pooling.temporal_pooling([9], [4], 5, 2, 16, 1), *SMALL_POOLING]
    for case in chosen:
        arguments = case.make(CPU, torch.float32)
        wanted = case.contenders["reference"](*arguments)
        cotangents = contest.cotangents_of(contest.as_outputs(wanted))
        ran = []
        for name, contender in case.contenders.items():
            taken, given = arguments, cotangents
            if name in case.only_compiled:  # FlexAttention has no backward here
                taken, given = tuple(one.detach() if torch.is_tensor(one) else one for one in arguments), None
            if kernels.runs(contender, taken, given):
                torch.testing.assert_close(contender(*taken), wanted, rtol=1e-4, atol=2e-5, msg=name)
                ran.append(name)
        assert {"ours", "reference", *case.compiled} <= set(ran)


SMALL_POOLING = [pooling.temporal_pooling([7, 3], [2, 1], 4, 2, 16, 1, biased=biased) for biased in (False, True)]


def test_a_kernel_that_agrees_passes_and_one_that_does_not_is_named(monkeypatch):
    case = attention.time_attention([6, 3], 4, 2, 16, 1)
    itself = timing.check(case, CPU, timing.Rung("reference", case.contenders["reference"]))
    assert itself == (None, "50% of the bound (output 0)")  # twice its own error is allowed
    assert timing.check(case, CPU, timing.Rung("ours", case.contenders["ours"]))[0] is None

    def wrong(*arguments):
        return case.contenders["reference"](*arguments) * 1.02

    calls = iter(range(1000))

    def unsteady(*arguments):
        return case.contenders["reference"](*arguments) + 1e-2 * (next(calls) > 0)

    found, _ = timing.check(case, CPU, timing.Rung("ours", wrong))
    assert "output 0: error" in found
    monkeypatch.setattr(contest.Case, "table_choice", lambda case, request="auto": None)
    assert "not bit equal" in timing.check(case, CPU, timing.Rung("ours", unsteady, "triton"))[0]
    calls = iter(range(1000))
    wrong, remark = timing.check(case, CPU, timing.Rung("ours", unsteady, "torch"))
    assert wrong is None and "not bit equal, by a library" in remark


def test_a_check_on_a_cpu_judges_what_runs_here(monkeypatch, capsys):
    case = attention.time_attention([6, 3], 4, 2, 16, 1)
    monkeypatch.setattr(kernels, "cases", lambda size: [case])
    assert kernels.main(["--check", "--only", "time_attention"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(case.name)} \| ours: passed; \d+% of the bound \((output|gradient) \d\)", line)
    monkeypatch.setattr(timing, "_error", lambda found, wanted: float("nan"))
    assert kernels.main(["--check", "--only", "time_attention", "--dtype", "float32"]) == 1
    assert "FAILED: output 0: error nan" in capsys.readouterr().out


def test_a_backend_that_cannot_run_here_is_not_timed_as_if_it_did():
    case = attention.time_attention([6, 3], 4, 2, 16, 1)
    found, _ = timing.check(case, CPU, timing.Rung("ours, triton", case.contenders["ours"], "triton"))
    assert found.startswith("not available: PyTorch, not triton: the tensors are on a cpu device")
    assert gpu_tasks.verdict(found, "") == found


def test_a_kernel_that_crashes_is_a_verdict(monkeypatch):
    case = attention.time_attention([6, 3], 4, 2, 16, 1)
    crashing = dataclasses.replace(case, contenders={**case.contenders, "ours": lambda *a: 1 / 0})
    monkeypatch.setattr(gpu_tasks, "case_named", lambda name: crashing)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: True)
    events = gpu_tasks.perform(gpu_tasks.Task("check", case.name), CPU, {})
    ((name, verdict, _),) = [event["verdict"] for event in events if "verdict" in event]
    assert name == f"{case.name} | ours, triton" and verdict.startswith("FAILED: ZeroDivisionError")


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_case_asks_dispatch_for_what_it_decides(size):
    for case in cases(size):
        assert case.decision.operator in dispatch._refusals
        known = {"torch", *dispatch._refusals[case.decision.operator]}
        assert {*case.decision.backends, *case.decision.stock.values()} <= known
        assert set(case.decision.stock) | set(case.compiled) <= set(case.contenders)
        if size == "small":
            case.contenders["ours"](*case.make(CPU, torch.float32))
            assert case.table_choice() is not None, case.name


def test_every_case_climbs_the_whole_ladder():
    for case in cases("large"):
        names = [rung.name for rung in timing.rungs_of(case)]
        plain = [name for name in names if not name.startswith(("compiled", "max-autotune"))]
        assert plain[0].startswith("ours, ") and plain[-1] == "reference" and len(plain) >= 3, case.name
        assert {f"{label} {name}" for label in ("compiled", "max-autotune") for name in case.compiled} <= set(names)
        if case.operator in ("time_attention", "space_attention"):
            assert {*(f"sdpa {name}" for name in contest.SDPA), "eager matmul", "max-autotune flex"} <= set(names)
            assert "flash" in case.decision.stock.values()
    for operator in ("conv3x3", "precision_operator", "exchange_down", "exchange_up", "exchange_up_norm"):
        case = next(case for case in cases("large") if case.operator == operator)
        assert [rung.backend for rung in timing.rungs_of(case)][:2] == ["triton", "torch"]


def test_each_variable_length_attention_is_a_rung_and_the_one_that_dispatch_takes_decides(monkeypatch):
    names = ["flash_attn_interface", "flash_attn", "torch varlen_attn"]
    monkeypatch.setattr(attention, "varlen_libraries", lambda: dict.fromkeys(names))
    for case in (
        attention.time_attention([6, 3], 4, 2, 16, 1),
        attention.time_attention([6, 3], 4, 2, 200, 1),
        attention.space_attention(3, 4, 2, 16, 1),
    ):
        rungs = {rung.name: rung for rung in timing.rungs_of(case) if rung.name in names}
        wide = case.decision.sizes["channels"] > 192
        assert [rungs[name].backend for name in names] == (["", "flash", ""] if wide else ["flash", "", ""])
        assert [rungs[name].call.keywords["library"] for name in names] == names


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


def test_what_a_compiler_must_make_comes_last_and_what_is_worth_most_first():
    tasks = gpu.tasks_of(None)
    first = next(number for number, task in enumerate(tasks) if task.compiled)
    assert all(task.compiled for task in tasks[first:])
    order = [(task.kind, task.name) for task in tasks[:first]]
    case = "time_attention T=32, 8 segments, 256x8x64"
    assert order[0] == ("check", case)
    wanted = [("check", "block"), ("time", case), ("part", "block"), ("part", "exchange"), ("steps", "large")]
    wanted += [("check", "decoders"), ("part", "decoders")]
    assert [one for one in order if one in wanted] == wanted
    assert (
        order.index(("steps", "large")) < order.index(("time", "sample_vmf 180224x64")) < order.index(("questions", ""))
    )
    for kind, name in order:  # nothing is timed before it is checked
        if kind in ("time", "part"):
            assert ("check", name) in order[: order.index((kind, name))]


def test_wrong_kernels_are_not_timed_and_neither_is_what_is_made_of_them(tmp_path, capsys):
    done = {}

    def perform(task):
        done.setdefault((task.kind, task.name), task.without)
        if task.kind == "check":
            for rung in task.checked:
                wrong = "512" in task.name or (task.name, rung) in (("block", "ours"), (CONV, "ours, triton"))
                yield {"verdict": [f"{task.name} | {rung}", "FAILED: wrong" if wrong else "passed", rung == "ours"]}

    assert gpu.run(sheet.Sheet(tmp_path, "abc"), perform, ["channel_norm", "conv3x3", "block", "steps"], 100.0) == 1
    assert ("time", "channel_norm 16384x512") not in done
    assert done["time", "channel_norm 262144x128"] == () and done["time", CONV] == ("ours, triton",)
    assert done["part", "block"] == ("ours", "ours compiled") and done["part", "exchange"] == ()
    assert "ours, selective" in done["steps", "large"] and "tuned eager" not in done["steps", "large"]
    (text,) = tmp_path.glob("*.md")
    assert "- channel_norm 16384x512 | ours, triton: not timed, FAILED: wrong" in text.read_text()
    assert "- steps large | ours: not timed, what the table chooses is wrong: block | ours" in text.read_text()


CONV = "conv3x3 64x64x64x128"


def test_a_check_that_says_nothing_is_failed():
    verdicts, unrun = gpu.Verdicts(), ["check conv3x3 64x64x64x128: its process died, status 7"]
    verdicts.add(f"{CONV} | ours, triton", "passed", False)
    verdicts.complete(gpu_tasks.Task("check", CONV), unrun)
    assert not unrun and verdicts.texts[f"{CONV} | ours, torch"].startswith("FAILED: check conv3x3")
    assert verdicts.wrong_choices == [f"{CONV} | ours, torch"]


def test_what_has_fp32_tiles_of_its_own_is_checked_in_fp32_and_never_keeps_a_step_in_bf16_from_its_time():
    tasks = [task for task in gpu.tasks_of(None) if task.dtype == "float32"]
    assert {task.kind for task in tasks} == {"check"}
    own = {entry.operator for entry in tuning.table("default") if tuple(entry.dtypes or ()) == ("float32",)}
    assert {gpu_tasks.case_named(task.name).decision.operator for task in tasks} == own
    verdicts = gpu.Verdicts()
    verdicts.complete(tasks[0], [])
    assert verdicts.texts == {f"{tasks[0].name}, float32 | ours, triton": "FAILED: no answer"}
    assert verdicts.refused(gpu_tasks.Task("steps", "large")) == ((), [])


def test_a_check_in_fp32_is_one_against_fp64():
    case = attention.time_attention([6, 3], 4, 2, 16, 1)
    assert timing.check(case, CPU, timing.Rung("ours", case.contenders["ours"]), torch.float32)[0] is None

    def rounded(*arguments):
        return case.contenders["reference"](*arguments).bfloat16().float()

    wrong, _ = timing.check(case, CPU, timing.Rung("ours", rounded), torch.float32)
    assert wrong.startswith("output 0: error")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "results")]) == 0
    assert "no GPU" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_rows_are_on_disk_as_soon_as_they_are_known_and_unrun_ones_are_listed(tmp_path):
    written = sheet.Sheet(tmp_path, "abc")
    timed, work = timing.Timing(20.0, 19.0, 21.0, 10.0, 1.0), roofline.Work(7.9e9, 0.0)
    written.add(sheet.make_row("x", "s", "ours", "both", timed, work, IDENTITY))
    row = written.csv_path.read_text().splitlines()[1]
    assert row.startswith("x,s,ours,,both,bfloat16,20.0,19.0,21.0,10.0,790.0")
    written.close({"x": "passed"}, ["y: out of time"])
    text = written.text_path.read_text()
    assert "| 100% |" in text  # 7.9 GFLOP at 790 TFLOP/s take 10 µs
    assert "- y: out of time" in text


def test_a_second_run_of_a_day_leaves_the_first_one_alone_and_changes_are_told_from_their_commit(tmp_path):
    commits = ("0123456789abcdef", "0123456789abcdef", "0123456789-dirty", "0123456789-dirty")
    stems = [sheet.Sheet(tmp_path, commit).csv_path.stem for commit in commits]
    assert [stem.split("-", 3)[3] for stem in stems] == [
        "0123456789",
        "0123456789-2",
        "0123456789-dirty",
        "0123456789-dirty-2",
    ]


def test_results_of_an_earlier_run_are_no_change_of_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "benchmarks" / "results")
    assert gpu._commit() == "unknown"
    git = ("git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    clean = gpu._commit()
    assert len(clean) == 10
    sheet.Sheet(gpu.RESULTS / "nvidia-h200", clean)
    assert gpu._commit() == clean
    (tmp_path / "benchmarks" / "gpu.py").write_text("changed")
    assert gpu._commit() == f"{clean}-dirty"


def test_a_contender_that_fails_in_any_way_leaves_the_others_theirs(monkeypatch):
    case = pointwise.point_wise("bias_gelu", 4, 8, 1)

    def wrong(*arguments):
        raise TypeError("not like this")

    names = ("ours", "second", "first", "last")
    broken = dataclasses.replace(
        case, contenders=dict.fromkeys(names, case.contenders["ours"]) | {"first": wrong}, compiled=()
    )
    usable = iter([True, True, False, False])
    monkeypatch.setattr(gpu_tasks, "case_named", lambda name: broken)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: next(usable))
    monkeypatch.setattr(gpu_tasks, "input_sets", lambda case, device: [case.make(device, torch.float32)])
    monkeypatch.setattr(gpu_tasks, "time_calls", timed_once)
    events = list(gpu_tasks.perform(gpu_tasks.Task("time", "x"), CPU, IDENTITY))
    rows = [(event["row"]["contender"], event["row"]["mode"]) for event in events if "row" in event]
    assert rows == [(name, mode) for name in ("ours, triton", "second") for mode in timing.MODES]
    unrun = [event["unrun"] for event in events if "unrun" in event]
    assert [one.split(" | ", 1)[1] for one in unrun] == [
        *(f"first | {mode}: TypeError: not like this" for mode in timing.MODES),
    ]
    assert events[-2]["left"].endswith("last | forward") and "done" in events[-1]


def timed_once(calls, *settings):
    calls[0]()
    return timing.Timing(1.0, 1.0, 1.0, None, 0)


def test_a_capture_that_fails_keeps_its_row_and_ends_the_process(monkeypatch):
    """PyTorch is left in the middle of it: whatever follows would fail, or be measured wrong."""
    failed = []
    monkeypatch.setattr(gpu_tasks, "failed_captures", failed)

    def uncaptured():
        failed.append("legacy stream")
        return sheet.Row(*[""] * len(dataclasses.fields(sheet.Row)))

    events = list(gpu_tasks.measured([("first", uncaptured), ("second", uncaptured)], float("inf")))
    assert [next(iter(event)) for event in events] == ["row", "unrun", "left"] and len(failed) == 1
    assert "no time in a CUDA graph, its capture failed: legacy stream" in events[1]["unrun"]
    assert events[2] == {"left": "second"}
    assert not gpu_tasks._usable()


def test_what_a_broken_process_left_is_done_by_the_next_and_never_tried_in_vain(tmp_path):
    given = []

    def perform(task):
        given.append(task.done)
        for label in ("first", "breaks", "last"):
            if label in task.done:
                continue
            if label == "last" and len(given) < breaking:
                yield {"left": label}
                return
            yield {"unrun": f"{label}: no", "label": label}

    breaking = 2
    gpu.run(sheet.Sheet(tmp_path, "abc"), perform, ["questions"], 100.0)
    assert given == [(), ("first", "breaks")]
    given, breaking = [], 9
    written = sheet.Sheet(tmp_path, "abc")
    gpu.run(written, perform, ["questions"], 100.0)
    assert len(given) == 2 and "- last, and what follows it: the process is broken" in written.text_path.read_text()


def test_a_task_gets_no_more_than_its_share_of_the_budget_but_a_compiler_may_take_all(tmp_path):
    given = {}

    def perform(task):
        given[str(task)] = task.seconds
        return iter([])

    gpu.run(sheet.Sheet(tmp_path, "abc"), perform, ["block", "questions"], 10_000.0)
    assert given["check block"] == gpu.MOST_S["check"] and given["questions"] == gpu.MOST_S["questions"]
    gpu.run(sheet.Sheet(tmp_path, "abc"), perform, ["questions"], 5.0)
    assert 0 < given["questions"] <= 5


def test_counts_of_samples_beyond_the_memory_are_listed(monkeypatch):
    def full(self, name, step, samples):
        raise torch.OutOfMemoryError("so much")

    monkeypatch.setattr(steps, "preset_step", lambda preset, way: None)
    monkeypatch.setattr(steps.Steps, "_measure", full)
    monkeypatch.setattr(gpu_tasks, "_usable", lambda: True)
    events = list(gpu_tasks.perform(gpu_tasks.Task("steps", "base"), CPU, IDENTITY))
    assert [event["unrun"] for event in events[:-1]] == [
        "step base, 4 samples | ours: OutOfMemoryError: so much",
        "step base, 8 samples | ours: OutOfMemoryError: 4 samples did not fit",
        "step base, 4 samples | tuned eager: OutOfMemoryError: so much",
    ]


def test_what_was_compiled_for_one_contender_is_dropped_before_the_next_is_made(monkeypatch):
    """Graphs of a compiled model outlive it, and with them the memory in which they were recorded."""
    kept = []

    class Graph:
        def __init__(self, graph, _):
            self.forward = graph.forward
            kept.append(weakref.ref(self))

        def __call__(self, *arguments):
            return self.forward(*arguments)

    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    def make(preset, way):
        step = Doubled()
        step.compile(backend=Graph)
        step(torch.ones(1, 2))
        return step

    monkeypatch.setattr(steps, "preset_step", make)
    measured = steps.Steps("tiny", IDENTITY)
    measured._made(steps.CONTENDERS["ours, CUDA graphs"])
    assert kept[0]() is not None
    measured._made(steps.CONTENDERS["ours, compiled"])
    assert [one() is None for one in kept] == [True, False]


def test_floors_follow_the_notes_of_the_roofline():
    floor = roofline.time_attention([32], 256, 8, 64)["forward"].floor_s(roofline.GPUS["h200"])
    assert floor == pytest.approx(7.8e-6, rel=0.01)
    floor = roofline.conv3x3(32, 64, 128)["forward"].floor_s(roofline.GPUS["h200"])
    assert floor == pytest.approx(48.9e-6, rel=0.01)
    assert roofline.main([]) == 0


def test_a_floor_is_not_that_of_another_gpu_whose_name_begins_alike():
    assert sheet.limits_of("NVIDIA A100-SXM4-80GB") == roofline.GPUS["a100"]
    assert sheet.limits_of("NVIDIA GH200 480GB") == roofline.GPUS["h200"]
    assert sheet.limits_of("NVIDIA RTX A1000") is None


def test_an_unknown_operator_is_refused_and_help_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        kernels.main(["--only", "foo"])
    assert ended.value.code == 2 and "unknown operator foo: expected some of bias_gelu" in capsys.readouterr().err
    for command in (kernels, gpu):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "time_attention" in capsys.readouterr().out
