"""A training process with a fault in it: python faulty.py RUN CHIPS FAULT STEP [STORE RANK SIZE TIMEOUT_S]

Faults, at or after STEP: ``anywhere`` kills the process (SIGKILL) at a random moment of a step, ``writing`` in the
middle of a file of a checkpoint, ``publishing`` between its manifest and its name, ``rotating`` while an old one is
removed; ``dies`` kills this rank between two steps, ``stalls`` stops it there (SIGSTOP); ``validating`` and
``validating3`` lack memory within a validation at STEP, at ZeRO stage 1 and 3; ``full`` lacks
memory on this rank in the step after; ``none`` has none. Resumes where RUN stands.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from conftest import tiny

from aef.launcher.command import run as run_command
from aef.training import Trainer
from aef.training import checkpoint as checkpoint_room


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm_writing():
    save = torch.save

    def save_half(value, path, **options):
        save(value, path, **options)
        with open(path, "r+b") as stream:
            stream.truncate(os.path.getsize(path) // 2)
        die()

    torch.save = save_half


def arm_publishing():
    commit = checkpoint_room.Checkpoints.commit

    def commit_half(self, partial, step, files):
        replace = os.replace
        os.replace = lambda source, target: die() if Path(source) == partial else replace(source, target)
        return commit(self, partial, step, files)

    checkpoint_room.Checkpoints.commit = commit_half


def arm_rotating():
    def remove_half(path, **options):
        for file in sorted(Path(path).rglob("*"))[:2]:
            if file.is_file():
                file.unlink()
        if Path(path).exists():
            die()

    shutil.rmtree = remove_half


def arm_anywhere(step_s):
    delay = random.uniform(0, 2 * step_s)
    threading.Timer(delay, die).start()


def lack_memory(module, inputs):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def arm_validating(model):
    """Where a validation begins to embed, with weights gathered for the blocks before."""

    def fail(module, inputs):
        if not model.training:
            lack_memory(module, inputs)

    model.summary.register_forward_pre_hook(fail)


def main():
    run, chips, fault, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    random.seed(f"{run}{fault}{at}")
    timeout_s = 300.0
    if len(sys.argv) > 5:
        store, rank, size, timeout_s = sys.argv[5], int(sys.argv[6]), int(sys.argv[7]), float(sys.argv[8])
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0")
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
    validates = fault.startswith("validating")
    config = tiny(timeout_s=timeout_s, figure_every=10**6, validate_every=at if validates else 0)
    started = time.monotonic()
    deepspeed = "zero3" if fault == "validating3" else None
    with Trainer(config, chips, run, resume="auto", deepspeed_config=deepspeed, quiet=True) as trainer:
        if validates:
            arm_validating(trainer.engine.model)
        for record in trainer.steps():
            step_s, started = time.monotonic() - started, time.monotonic()
            if record["step"] != at:
                continue
            if fault == "anywhere":
                arm_anywhere(step_s)
            elif fault in ("dies", "stalls") and trainer.ranks.rank == trainer.ranks.size - 1:
                os.kill(os.getpid(), signal.SIGKILL if fault == "dies" else signal.SIGSTOP)
            elif fault == "full" and trainer.ranks.rank == trainer.ranks.size - 1:
                trainer.engine.model.summary.register_forward_pre_hook(lack_memory)
            elif fault in ("writing", "publishing", "rotating"):
                {"writing": arm_writing, "publishing": arm_publishing, "rotating": arm_rotating}[fault]()
    return 0


if __name__ == "__main__":
    from aef.training.distributed import RankError

    try:
        raise SystemExit(run_command(lambda argv: main()))
    except RankError as error:
        print(f"rank error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
