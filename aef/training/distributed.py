"""The ranks of one run: how they find each other, agree, and part.

Works the same under `deepspeed`, `torchrun` and plain `python`: with rank variables in the environment it joins their
group (NCCL on GPUs, gloo on CPUs), without them it is a group of one that opens no port.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .log import duration

BEAT_S = 2.0
"""How often rank 0 shows that it lives while the others wait for what it does alone."""

SAID_EVERY = 15
"""Beats between two lines that say what rank 0 is doing."""

_alone = itertools.count()
# Numbers what rank 0 does alone: every rank comes to the same actions in the same order.


class RankError(RuntimeError):
    """One rank failed, stalled or went away, this one or another; one line that says what is known."""


@dataclass(frozen=True)
class Ranks:
    """This rank and its companions.

    ``rank`` of ``size``; ``local_rank`` on its machine; ``device`` of its tensors; ``timeout_s`` after which a rank
    that does not answer ends the run.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    timeout_s: float

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def maximum(self, values: Tensor) -> Tensor:
        """Element-wise maximum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One small JSON value from each rank, in rank order, on every rank. Nothing is pickled."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(text)
        sizes = self.sum(lengths).tolist()
        padded = torch.nn.functional.pad(text, (0, max(sizes) - len(text)))
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [json.loads(bytes(part[:size].cpu().numpy())) for part, size in zip(parts, sizes, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Rank 0's JSON value on every rank."""
        return self.gather(value if self.is_first else None)[0]

    def on_first(
        self, action: Callable[[], Any], doing: str = "", say: Callable[[str], None] = lambda text: None
    ) -> Any:
        """Run ``action`` on rank 0 only and return its JSON value on every rank.

        It may take any time: the others wait outside of collectives, and give up only where rank 0 itself stands still
        for ``timeout_s``. What rank 0 is ``doing``, if it has a name, is said every ``SAID_EVERY`` beats.

        Raises:
            Exception: what ``action`` raised, on rank 0; `RankError` with its message on the others, so that no rank
                waits for one that has gone.
            RankError: rank 0 went away or stood still.
        """
        value, error = None, None
        with self.watching():
            turn = f"aef/alone/{next(_alone)}"
            if self.is_first:
                with self._beating(turn, doing, say):
                    try:
                        value = action()
                    except Exception as failure:
                        error = failure
            else:
                self._await_first(turn)
            said = self.from_first([value, None if error is None else str(error) or type(error).__name__])
        if error is not None:
            raise error
        value, message = said
        if message is not None:
            raise RankError(f"rank 0: {message}")
        return value

    @contextmanager
    def _beating(self, turn: str, doing: str = "", say: Callable[[str], None] = print) -> Iterator[None]:
        """Within the block, a thread counts up in the group's store, so that the others know that this rank lives, and
        says how long it has been doing what it does."""
        store, over = None if self.size == 1 else _store(), threading.Event()

        def beat() -> None:
            # A store that is gone is found by whatever this rank does next.
            with suppress(RuntimeError):
                for beats in itertools.count(1):
                    if over.wait(BEAT_S):
                        return
                    if store is not None:
                        store.add(f"{turn}/beats", 1)
                    if doing and beats % SAID_EVERY == 0:
                        say(f"{doing}: {duration(beats * BEAT_S)} so far")

        thread = threading.Thread(target=beat, name="beats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if store is not None:
                store.set(f"{turn}/done", "1")

    def _await_first(self, turn: str) -> None:
        """Wait until rank 0 is done. Raises RankError where its beats stand still for ``timeout_s``."""
        store, pause_s = _store(), 0.001
        beats, changed = 0, time.monotonic()
        while not store.check([f"{turn}/done"]):
            heard = store.add(f"{turn}/beats", 0)
            if heard != beats:
                beats, changed = heard, time.monotonic()
            if time.monotonic() - changed > self.timeout_s + BEAT_S:
                raise RankError(
                    f"rank {self.rank} has waited {self.timeout_s:g} s for rank 0, which stands still: go on from the last "
                    "checkpoint with --resume auto"
                )
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 1.0)

    def first_trouble(self, own: str | None) -> str | None:
        """What went wrong on the first rank on which something did, on every rank; None: on none.

        The ranks meet in the group's store and in no collective: one that failed must not enter another collective than
        its companions are in.

        Raises:
            RankError: a rank did not come within ``timeout_s``.
        """
        if self.size == 1:
            return own
        store, turn = _store(), f"aef/trouble/{next(_alone)}"
        keys = [f"{turn}/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], json.dumps(own))
        over = time.monotonic() + self.timeout_s
        while not store.check(keys):
            if time.monotonic() > over:
                itself = "" if own is None else f" after it failed ({own})"
                raise RankError(
                    f"rank {self.rank} has waited {self.timeout_s:g} s for its companions{itself}: go on from the last "
                    "checkpoint with --resume auto"
                )
            time.sleep(0.01)
        troubles = [json.loads(store.get(key)) for key in keys]
        return next((f"rank {rank}: {text}" for rank, text in enumerate(troubles) if text is not None), None)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, a failing collective becomes one line.

        Raises:
            RankError: another rank died, or did not answer within ``timeout_s``.
        """
        try:
            yield
        except RankError:
            raise
        except RuntimeError as error:
            if self.size == 1 or not _is_communication(error):
                raise
            raise RankError(
                f"rank {self.rank} lost its companions: one died or did not answer within {self.timeout_s:g} s "
                f"({' '.join(str(error).split())[:120]}); go on from the last checkpoint with --resume auto"
            ) from error


def start(timeout_s: float) -> Ranks:
    """Join the group that the environment describes, or make a group of one.

    A process group that the caller has already made (a notebook, a test) is used as it is.

    Raises:
        OSError: the rendezvous port is in use, or rank 0 cannot be reached.
        ValueError: only some of the rank variables are set.
    """
    # torch 2.13 renames the collective, 2.11 knows the old name only.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    rank, size, local_rank = _ranks()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"rank {rank} wants GPU {local_rank}, this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(rank, size, device, timeout_s)
        # Not earlier: DeepSpeed holds on to the group, and a process may train several times.
        atexit.register(_leave)
    # DeepSpeed reads these; a group of one has set none of them.
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
        os.environ.setdefault(name, str(value))
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, timeout_s)


def _ranks() -> tuple[int, int, int]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names):
        return 0, 1, 0
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not set beside {', '.join(set(names) - set(missing))}: use one launcher"
        )
    return tuple(int(os.environ[name]) for name in names)  # type: ignore[return-value]


def _join(rank: int, size: int, device: torch.device, timeout_s: float) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        why = " ".join(str(error).split())[:160]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise OSError(f"the rendezvous port of {where} is in use: choose another with --master_port") from error
        raise OSError(f"rank {rank} cannot reach its companions at {where} within {timeout_s:g} s: {why}") from error


def _is_communication(error: RuntimeError) -> bool:
    """Whether torch.distributed says so: by type for NCCL and the store, by wording for gloo."""
    words = ("gloo", "connection closed", "connection reset", "timed out", "nccl", "broken pipe", "socket")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _store() -> dist.Store:
    """The store in which the ranks of the group met."""
    return dist.distributed_c10d._get_default_store()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
