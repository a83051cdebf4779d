"""A rank that is killed while its loader works: python loading.py CHIPS OPEN_FILES

Three steps of 32 micro-batches through two workers, with so many files open at most. Prints the micro-batches of each
step and the ids of the workers, and dies.
"""

import dataclasses
import os
import resource
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import tiny

from aef.training.distributed import Ranks
from aef.training.loader import StepLoader
from aef.training.new_run import describe_run


def main():
    chips, most = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = tiny(global_batch=32, micro_batch=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=2))
    run = describe_run(config, chips, chips / "run", print)
    loader = StepLoader(run, chips, Ranks(0, 1, 0, torch.device("cpu"), 600.0), 0)
    for _ in range(3):
        loaded = loader.next()
        print("step", len(loaded.batches), loaded.error, flush=True)
    print("workers", *loader.processes(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
