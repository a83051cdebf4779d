"""What one process measures for `python -m benchmarks.gpu`: a task at a time from standard input, events as JSON to
standard output.

A kernel that reads outside its memory breaks the CUDA context of its process for good. So the tasks run in a process of
their own, which says so and ends; the next task gets a new one, and no more than one result is lost.
"""

import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config

from benchmarks import parts, roofline
from benchmarks.cases import cases, fp32_cases
from benchmarks.cases.case import Case
from benchmarks.questions import Question, matrix_peak, questions
from benchmarks.sheet import Row, identity_of, make_row
from benchmarks.steps import Steps
from benchmarks.timing import (
    MODES,
    UNAVAILABLE,
    Rung,
    calls_of,
    check,
    failed_captures,
    input_sets,
    rungs_of,
    time_calls,
)

TIMED = "bfloat16"
"""The type of everything that is timed; fp32 is only checked."""
Event = dict[str, Any]
"""{"row": …} and {"unrun": text}, with the label of what is done with, {"left": the first label left to another
process}, {"verdict": [rung, text, whether the table chooses it]}, and at a task's end {"done": whether the process can
go on}."""


@dataclass(frozen=True)
class Task:
    """check: are the rungs of a case or a part of the model right; time: its contenders; part: the rungs of a block,
    its exchange or the decoders; steps: of one preset; questions. Those that a compiler has to make first, for minutes,
    are tasks of their own. Rungs `without` which it is to be are wrong; labels that are `done` are an earlier
    process's. `seconds` are left when it begins."""

    kind: str
    name: str = ""
    compiled: bool = False
    without: tuple[str, ...] = ()
    seconds: float = float("inf")
    dtype: str = TIMED
    done: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.kind, *filter(None, (self.subject, "compiled" if self.compiled else ""))))

    @property
    def subject(self) -> str:
        """The name, and the type where it is not bf16."""
        return self.name if self.dtype == TIMED else f"{self.name}, {self.dtype}"

    @property
    def checked(self) -> list[str]:
        """The rungs that a check gives a verdict on."""
        if self.name in parts.CHECKED:
            return list(parts.CHECKED[self.name])
        return [f"ours, {backend}" for backend in case_named(self.name).decision.backends]


def case_named(name: str) -> Case:
    """The case of the paper's shapes, or of fp32's, of this name."""
    return next(case for case in (*cases("large"), *fp32_cases()) if case.name == name)


def perform(task: Task, device: torch.device, identity: dict[str, Any]) -> Iterator[Event]:
    """The events of one task; whatever goes wrong in it is one of them."""
    deadline = time.monotonic() + task.seconds
    try:
        yield from _KINDS[task.kind](task, device, identity, deadline)
    except Exception as error:  # a measurement that cannot be made is a result, not the end of the run
        yield {"unrun": f"{task}: {describe(error)}"}
    yield {"done": _usable()}


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:140]}"


def _usable() -> bool:
    """Free what the task held; False where the CUDA context is broken, or PyTorch is left in the middle of a capture."""
    gc.collect()
    if failed_captures:
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def measured(
    wanted: Iterable[tuple[str, Callable[[], Row]]], deadline: float, done: Collection[str] = ()
) -> Iterator[Event]:
    """Rows of measurements but those `done`, made one after another; each that fails, or that nothing is left for, is
    named instead. Where one breaks the process, the next and all behind it are left to another."""
    broken = False
    for label, measure in wanted:
        if label in done:
            continue
        if broken:
            yield {"left": label}
            return
        if time.monotonic() > deadline:
            yield {"unrun": f"{label}: out of time"}
            continue
        try:
            yield {"row": asdict(measure()), "label": label}
        except Exception as error:  # of compilers, libraries and drivers, which have no common kind
            failed = describe(error)
        else:
            if failed_captures:
                broken = True
                yield {"unrun": f"{label}: no time in a CUDA graph, its capture failed: {failed_captures[-1]}"}
            continue
        yield {"unrun": f"{label}: {failed}", "label": label}
        broken = not _usable()  # not before the error is gone, which holds on to what the measurement made


# --- kinds of tasks --------------------------------------------------------------------------------------------------


def _check(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """A verdict on each rung of ours. One that raises may have broken the context: those behind it are judged by its word."""
    if task.name in parts.CHECKED:
        for name, wrong, remark in parts.check(task.name, device):
            yield {"verdict": [f"{task.name} | {name}", verdict(wrong, remark), name == "ours"]}
        return
    case, broken = case_named(task.name), ""
    for rung in (one for one in rungs_of(case) if one.name in task.checked):
        try:
            wrong, remark = (broken, "") if broken else check(case, device, rung, getattr(torch, task.dtype))
        except Exception as error:
            wrong, remark = describe(error), ""
            broken = "" if _usable() else f"the CUDA context is broken: {wrong}"
        choice = case.table_choice()
        chosen = choice is not None and choice.backend == rung.backend and task.dtype == TIMED
        yield {"verdict": [f"{task.subject} | {rung.name}", verdict(wrong, remark), chosen]}


def verdict(wrong: str | None, remark: str) -> str:
    """What a check found, in words that begin with "passed", "FAILED" or "not available"."""
    if wrong:
        return wrong if wrong.startswith(UNAVAILABLE) else f"FAILED: {wrong}"
    return f"passed; {remark}" if remark else "passed"


def _time(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """All contenders of a case in all modes, as far as the time goes."""
    case = case_named(task.name)
    sets = input_sets(case, device)

    def row(rung: Rung, mode: str) -> Row:
        timing = time_calls(calls_of(case, rung, sets, mode), rung.capturable)
        choice = case.table_choice()
        chosen = choice is not None and rung.backend == choice.backend
        note = "the table's choice" if chosen else ""
        settings = {"backend": rung.backend, "dtype": sets[0][0].dtype, "note": note}
        return make_row(case.operator, case.shape, rung.name, mode, timing, case.work[mode], identity, **settings)

    wanted = (
        (f"{case.name} | {rung.name} | {mode}", partial(row, rung, mode))
        for rung in rungs_of(case)
        if rung.compiled == task.compiled and rung.name not in task.without
        for mode in MODES
    )
    yield from measured(wanted, deadline, task.done)


def _part(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """The rungs of a part of the model, beside the rate of a large product, of which they are a share."""
    rates: list[float] = []

    def peak(question: Question) -> Row:
        found = _answer(question, identity)
        rates.append(found.tflops)
        return found

    def row(shape: str, name: str, make: Callable[[], Callable[[], object]], work: roofline.Work) -> Row:
        found = make_row(task.name, shape, name, "both", time_calls([make()]), work, identity)
        note = f"{found.tflops / rates[0]:.0%} of the large product's rate" if rates else ""
        return dataclasses.replace(found, note=note)

    rungs = parts.rungs(task.name, device, compiled=task.compiled, without=task.without)
    wanted = ((f"{task.name} {one[0]} | {one[1]}", partial(row, *one)) for one in rungs)
    yield from measured([("large product", partial(peak, matrix_peak(device)))], deadline)
    yield from measured(wanted, deadline, task.done)


def _questions(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    wanted = ((f"{one[0]} {one[1]}", partial(_answer, one, identity)) for one in questions(device))
    yield from measured(wanted, deadline, task.done)


def _answer(question: Question, identity: dict) -> Row:
    operator, shape, calls, work = question
    return make_row(operator, shape, "stock", "forward", time_calls(calls), work, identity)


def _steps(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """With the settings of training, where nearly every step has another number of frames: no search for the fastest
    convolution, no plans of cuDNN for attention."""
    try:
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield from measured(Steps(task.name, identity).rows(task.compiled, task.without), deadline, task.done)
    finally:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_cudnn_sdp(True)


_KINDS = {"check": _check, "time": _time, "part": _part, "questions": _questions, "steps": _steps}


# --- the process -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Perform the tasks of standard input, one a line, until a task breaks the process or there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_stream(torch.cuda.Stream(device))  # graphs are captured on it: `timing._time_graph`
    torch._functorch.config.donated_buffer = False  # a compiled backward is repeated on one graph
    torch.backends.cudnn.benchmark = True
    identity = identity_of(device, sys.argv[1])
    for line in sys.stdin:
        for event in perform(Task(**json.loads(line)), device, identity):
            print(json.dumps(event), file=answers, flush=True)
        if not event["done"]:
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
