"""Kernels on a GPU: python -m benchmarks.gpu [--only NAMES] [--budget-s S] [--out DIR] [--commit SHA]

Runs from a bare checkout with torch, Triton and NumPy. Correctness first (`benchmarks/timing.py` says how): an operator
that fails is not timed. Then timings, the most valuable rows first, and what a compiler has to make last: each row is
written as it is measured, rows that the budget left out are listed. Everything runs in processes of its own
(`benchmarks/gpu_tasks.py`): one that a kernel breaks is replaced. Results: DIR/DATE-COMMIT.csv and .md, by default in
benchmarks/results/GPU. Without a GPU it says so, writes nothing, and exits 0.
"""

import argparse
import contextlib
import dataclasses
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from aef.kernels import tuning
from benchmarks import block, parts
from benchmarks.cases import cases, fp32_cases, operators
from benchmarks.gpu_tasks import TIMED, Event, Task
from benchmarks.sheet import Row, Sheet
from benchmarks.steps import CONTENDERS, PLAN

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("block", "steps", "decoders", "questions")
WORTH_MOST = 6
"""The value from which on a case comes before blocks and steps."""
OVERTIME_S = 60.0
"""How long after its time a task may go on before its process is ended: a first one starts a process and compiles."""
MOST_S = {"check": 45.0, "time": 75.0, "part": 90.0, "questions": 60.0, "steps": 150.0}
"""What a task may take of the budget, so that a kernel that hangs costs a few rows; a compiler may take all."""
KILLED_S = 10.0
Perform = Callable[[Task], Iterator[Event]]


# --- processes -------------------------------------------------------------------------------------------------------


class Processes:
    """Performs tasks in a process, in a new one where the last one broke."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process: subprocess.Popen | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()

    def perform(self, task: Task) -> Iterator[Event]:
        """The task's events. A process that dies, or outlives the budget, is an event too."""
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        ends = time.monotonic() + task.seconds + OVERTIME_S
        try:
            self.process.stdin.write(json.dumps(asdict(task)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died before: read on until its end
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, ends - time.monotonic()) if ends < float("inf") else None)
            except queue.Empty:
                self.close()
                yield {"unrun": f"{task}: took {OVERTIME_S:.0f} s more than there were, and was ended"}
                return
            if line is None:
                status = self.process.wait()
                self.close()
                yield {"unrun": f"{task}: its process died, status {status}"}
                return
            event = json.loads(line)
            if "done" in event:
                if not event["done"]:
                    self.close()
                return
            yield event

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold on to a process whose kernel hangs
                self.process.wait(KILLED_S)
            self.process = None

    def _start(self) -> None:
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        self.process, self.lines = process, lines


# --- the run ---------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    names = operators("large")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*names, *PARTS), metavar="NAME", help=", ".join((*names, *PARTS)))
    parser.add_argument("--budget-s", type=float, default=1200.0, help="seconds after which no new row is begun")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/GPU)")
    parser.add_argument("--commit", help="commit of the checkout, where git cannot tell")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured and nothing is written")
        return 0
    commit = options.commit or _commit()
    sheet = Sheet(options.out or RESULTS / tuning.slug(torch.cuda.get_device_name()), commit)
    processes = Processes([sys.executable, "-m", "benchmarks.gpu_tasks", commit])
    try:
        return run(sheet, processes.perform, options.only, options.budget_s)
    finally:
        processes.close()


def run(sheet: Sheet, perform: Perform, only: list[str] | None, budget_s: float) -> int:
    """Perform all tasks in the order of what they are worth. Returns 1 where a kernel is wrong."""
    deadline, verdicts, unrun = time.monotonic() + budget_s, Verdicts(), []
    for task in tasks_of(only):
        without, refused = verdicts.refused(task)
        unrun += [line for line in refused if line not in unrun]
        if task.kind == "time" and set(without) >= set(task.checked):
            continue  # an operator that fails is not timed, and its stock rungs alone say nothing
        left = deadline - time.monotonic()
        if left <= 0:
            unrun.append(f"{task}: out of time")
            continue
        most = left if task.compiled else min(left, MOST_S[task.kind])
        attempt: Task | None = dataclasses.replace(task, without=without, seconds=most)
        while attempt is not None:
            attempt = _record(perform(attempt), attempt, sheet, verdicts, unrun)
        if task.kind == "check":
            verdicts.complete(task, unrun)
        sheet.close(verdicts.texts, unrun)
    print(f"{len(sheet.rows)} rows in {sheet.csv_path} and {sheet.text_path}")
    return int(any(text.startswith("FAILED") for text in verdicts.texts.values()))


def _record(events: Iterator[Event], task: Task, sheet: Sheet, verdicts: "Verdicts", unrun: list[str]) -> Task | None:
    """Write down a task's events. Returns what of it is left to another process, where something broke the first."""
    ends, done, left = time.monotonic() + task.seconds, list(task.done), ""
    for event in events:
        if "row" in event:
            sheet.add(Row(**event["row"]))
        elif "verdict" in event:
            name, text, chosen = event["verdict"]
            verdicts.add(name, text, chosen)
        elif "unrun" in event:
            unrun.append(event["unrun"])
            print(event["unrun"], flush=True)
        done += [event["label"]] if "label" in event else []
        left = event.get("left", left)
    seconds = ends - time.monotonic()
    if not left:
        return None
    if len(done) == len(task.done) or seconds <= 0:  # a second process broke at once, or there is no time for one
        unrun.append(f"{left}, and what follows it: the process is broken")
        return None
    return dataclasses.replace(task, done=tuple(done), seconds=seconds)


class Verdicts:
    """What the checks found, by "case | rung", and what must not be timed because of it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.wrong_choices: list[str] = []

    def add(self, name: str, text: str, chosen: bool) -> None:
        self.texts[name] = text
        if chosen and text.startswith("FAILED"):
            self.wrong_choices.append(name)
        print(f"{name}: {text}", flush=True)

    def complete(self, task: Task, unrun: list[str]) -> None:
        """Rungs that a check said nothing of have failed it; why is what came last, where its process ended."""
        names = [name for name in (f"{task.subject} | {rung}" for rung in task.checked) if name not in self.texts]
        why = unrun.pop() if names and unrun and unrun[-1].startswith(str(task)) else "no answer"
        for name in names:
            chosen = task.dtype == TIMED and (task.name not in parts.CHECKED or name.endswith("| ours"))
            self.add(name, f"FAILED: {why}", chosen)

    def refused(self, task: Task) -> tuple[tuple[str, ...], list[str]]:
        """The contenders that a task must leave out, and a line on each."""
        if task.kind == "steps" and self.wrong_choices:
            names = [name for name in CONTENDERS if CONTENDERS[name].kernels == "auto"]
            why = f"what the table chooses is wrong: {', '.join(self.wrong_choices)}"
        elif task.kind in ("time", "part"):
            found = {rung: self.texts.get(f"{task.name} | {rung}", "not checked") for rung in task.checked}
            wrong = {rung: text for rung, text in found.items() if not text.startswith("passed")}
            lines = [f"{task.name} | {rung}: not timed, {text}" for rung, text in wrong.items()]
            # What a compiler makes of a rung that is wrong is no better.
            return (*wrong, *(["ours compiled"] if "ours" in wrong else [])), lines
        else:
            return (), []
        return tuple(names), [f"{task} | {name}: not timed, {why}" for name in names]


def tasks_of(only: list[str] | None) -> list[Task]:
    """Everything that is wanted, the most valuable first: is it right, then times; what a compiler must make, last."""
    wanted = sorted((c for c in cases("large") if only is None or c.operator in only), key=lambda one: -one.value)
    first = [case.name for case in wanted if case.value >= WORTH_MOST]
    rest = [case.name for case in wanted if case.value < WORTH_MOST]
    in_fp32 = [case.name for case in fp32_cases() if only is None or case.operator in only]
    modules, steps, decoders, asked = (only is None or part in only for part in PARTS)
    blocks = list(block.MODULES) if modules else []
    decoding = ["decoders"] if decoders else []
    presets = list(PLAN) if steps else []
    return [
        *(Task("check", name) for name in [*first, *(block.MODULES if modules or steps else ())]),
        *(Task("time", name) for name in first),
        *(Task("part", name) for name in blocks),
        *(Task("steps", preset) for preset in presets[:1]),
        *(Task(kind, name) for name in decoding for kind in ("check", "part")),
        *(Task("check", name) for name in rest),
        *(Task("check", name, dtype="float32") for name in in_fp32),
        *(Task("time", name) for name in rest),
        *(Task("questions") for _ in range(asked)),
        *(Task("steps", preset) for preset in presets[1:]),
        *(Task("part", name, compiled=True) for name in [*blocks, *decoding]),
        *(Task("time", name, compiled=True) for name in first),
        *(Task("steps", preset, compiled=True) for preset in presets),
        *(Task("time", name, compiled=True) for name in rest),
    ]


def _commit() -> str:
    """HEAD, "-dirty" where something differs from it other than results of earlier runs."""
    changes = ["git", "status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT).as_posix()}"]
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(changes, cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout.strip()[:10] + ("-dirty" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
