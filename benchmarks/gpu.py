"""Kernels on a GPU: python -m benchmarks.gpu [--only NAMES] [--budget-s S] [--out DIR] [--commit SHA]

Runs from a bare checkout with torch, Triton and NumPy. Correctness first (`benchmarks/timing.py` says how): an operator
that fails is not timed. Then timings, the most valuable rows first, and what a compiler has to make last: each row is
written as it is measured, rows that the budget left out are listed. Everything runs in processes of its own
(`benchmarks/gpu_tasks.py`): one that a kernel breaks is replaced. Results: DIR/DATE-COMMIT.csv and .md, by default in
benchmarks/results/GPU. Without a GPU it says so, writes nothing, and exits 0.
"""

import argparse
import csv
import dataclasses
import datetime
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import torch

from aef.kernels import tuning
from benchmarks.gpu_tasks import MICRO_BATCHES, Event, Row, Task
from benchmarks.kernels import cases, operators

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("block", "questions", "steps")
OVERTIME_S = 60.0
"""How long after the budget a task may go on before its process is ended."""
Perform = Callable[[Task], Iterator[Event]]


class Sheet:
    """The CSV and Markdown files of one run: every row is on disk as soon as it is known. A further run of the same day and
    commit has files of its own, "-2" and so on: what was measured is never overwritten."""

    def __init__(self, folder: Path, commit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        dirty = "-dirty" if commit.endswith("-dirty") else ""
        stem = f"{datetime.date.today()}-{commit.removesuffix('-dirty')[:10]}{dirty}"
        stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        stem = next(one for one in stems if not list(folder.glob(f"{one}.*")))
        self.csv_path, self.text_path = folder / f"{stem}.csv", folder / f"{stem}.md"
        self.rows: list[Row] = []
        with self.csv_path.open("x", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([one.name for one in fields(Row)])

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, [one.name for one in fields(Row)]).writerow(asdict(row))
        graph = "" if row.graph_us is None else f", graph {row.graph_us:.1f}"
        print(f"{row.operator} {row.shape} | {row.contender} | {row.mode}: {row.median_us:.1f} µs{graph}", flush=True)

    def close(self, verdicts: dict[str, str], unrun: list[str]) -> None:
        """Write the Markdown: verdicts of correctness, all rows, and what was not run."""
        lines = ["# Kernels on a GPU", ""]
        if self.rows:
            r = self.rows[0]
            lines += [f"{r.gpu}, torch {r.torch}, Triton {r.triton}, cuDNN {r.cudnn}, commit {r.commit}, {r.date}", ""]
        lines += [
            "## Correctness",
            "",
            *(f"- {name}: {verdict}" for name, verdict in verdicts.items()),
            "",
            "## Timings",
            "",
        ]
        lines += [
            "| operator | shape | contender | mode | µs (20–80 %) | graph µs | TFLOP/s | GB/s | share of floor | MB | note |"
        ]
        lines += ["| " + "--- | " * 11]
        for r in self.rows:
            graph = "–" if r.graph_us is None else f"{r.graph_us:.1f}"
            share = "–" if r.floor_share is None else f"{r.floor_share:.0%}"
            lines.append(
                f"| {r.operator} | {r.shape} | {r.contender} | {r.mode} | {r.median_us:.1f} ({r.q20_us:.1f}–{r.q80_us:.1f}) "
                f"| {graph} | {r.tflops:.1f} | {r.gbytes_s:.0f} | {share} | {r.peak_mb:.0f} | {r.note} |"
            )
        lines += ["", "## Not run", "", *(f"- {name}" for name in unrun or ["nothing: every row was run"])]
        self.text_path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
            self.process.wait()
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
    deadline, verdicts, unrun = time.monotonic() + budget_s, {}, []
    for task in tasks_of(only):
        if task.kind == "time" and verdicts.get(task.name) != "passed":
            if not task.compiled:
                unrun.append(f"{task.name}: not timed, {verdicts.get(task.name, 'not checked')}")
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            unrun.append(f"{task}: out of time")
            continue
        for event in perform(dataclasses.replace(task, seconds=left)):
            if "row" in event:
                sheet.add(Row(**event["row"]))
            elif "verdict" in event:
                name, verdicts[name] = event["verdict"]
                print(f"{name}: {verdicts[name]}", flush=True)
            elif "unrun" in event:
                unrun.append(event["unrun"])
                print(event["unrun"], flush=True)
        if task.kind == "check":
            verdicts.setdefault(task.name, "FAILED: " + (unrun.pop() if unrun else "no answer"))
        sheet.close(verdicts, unrun)
    print(f"{len(sheet.rows)} rows in {sheet.csv_path} and {sheet.text_path}")
    return int(any(verdict.startswith("FAILED") for verdict in verdicts.values()))


def tasks_of(only: list[str] | None) -> list[Task]:
    """Everything that is wanted: is it right; then times, the most valuable first; what must be compiled first, last."""
    wanted = [case for case in cases("large") if only is None or case.operator in only]
    names = [case.name for case in sorted(wanted, key=lambda one: -one.value)]
    parts = [part for part in PARTS if only is None or part in only]
    return [
        *(Task("check", name) for name in names),
        *(Task("time", name) for name in names),
        *(Task("block") for part in parts if part == "block"),
        *(Task("steps", preset) for part in parts if part == "steps" for preset in MICRO_BATCHES),
        *(Task("questions") for part in parts if part == "questions"),
        *(Task("block", compiled=True) for part in parts if part == "block"),
        *(Task("time", name, compiled=True) for name in names),
    ]


def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout.strip()[:10] + ("-dirty" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
