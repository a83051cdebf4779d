"""DeepSpeed around a model: an engine that skips non-finite steps and gives up its weights at every stage.

Adam is torch's own: DeepSpeed's would be compiled at first use. Neither a C++ compiler nor MPI is needed on a CPU.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aef.config import Config
from aef.data.batch import Batch

from .deepspeed_config import micro_batches, precision_of, stage_of
from .devices import attend_without_plans, keep_freed_memory
from .distributed import Ranks

RESTART = "restart"
"""Folder of DeepSpeed's own files within a checkpoint."""


class Engine:
    """A model, its Adam and DeepSpeed around them.

    Use: ``output = engine(batch)``, ``engine.backward(loss, last=True)``, ``norm = engine.step(lr)``.

    Attributes:
        updating: whether weights and moments may be those of no step, since an update has not come to its end.
    """

    def __init__(self, model: nn.Module, config: Config, configuration: dict[str, Any], ranks: Ranks) -> None:
        deepspeed = import_deepspeed(ranks)
        self.config, self.configuration, self.ranks = config, configuration, ranks
        self.stage, self.precision = stage_of(configuration), precision_of(configuration)
        self.micro_batches = micro_batches(config, ranks.size)
        if ranks.device.type == "cpu":
            keep_freed_memory()
        else:
            attend_without_plans()
        model = model.to(ranks.device)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=_adam(model, config), config=configuration, dist_init_required=False
        )
        if ranks.size == 1 and self.stage == 0:
            # Alone there is nothing to average, yet DeepSpeed would copy all gradients to do so: 2 % of a `small` step.
            self._engine.enable_backward_allreduce = False
        self.updating = False
        self._writer = _recording_writer()
        self._engine.checkpoint_engine = self._writer
        # It copies a script that unpickles; model.safetensors makes it needless.
        self._engine._copy_recovery_script = lambda save_path: None

    @property
    def model(self) -> nn.Module:
        return self._engine.module

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def moved(self, batch: Batch) -> Batch:
        """The batch on this rank's device; nothing waits where it is page-locked."""
        return batch.to(self.device, non_blocking=True)

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``; with ``last`` ranks average what has been added up."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, lr: float) -> float | None:
        """Clip, update, clear. Returns the gradient's norm before clipping, or None where it was not finite.

        Then, on all ranks together, weights, moments and step counts are left bit for bit as they were.
        """
        self.updating = True
        norm = self._update(lr)
        self.updating = False
        return norm

    def _update(self, lr: float) -> float | None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            clip = self.config.train.clip_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
            if not math.isfinite(norm):
                self.model.zero_grad(set_to_none=True)
                return None
            self._engine.step()
            return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            return None
        return float(self._engine.get_global_grad_norm())

    # --- weights and restart files -----------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor] | None:
        """Names → fp32 weights on the CPU, whole, from any stage; None on every rank but the first. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.model.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if self.stage else None
            whole = parameter.detach() if whole is None else whole
            if self.ranks.is_first:
                weights[name] = whole.to("cpu", torch.float32, copy=True).view(_shape(parameter)).contiguous()
        return weights if self.ranks.is_first else None

    def save(self, folder: Path) -> tuple[list[Path], Exception | None]:
        """Write DeepSpeed's restart files into ``folder/restart``. Collective.

        Returns this rank's files and what went wrong on this rank, if anything: a rank that raised in the middle would
        leave the others waiting.
        """
        self._writer.begin()
        self._engine.save_checkpoint(str(folder), tag=RESTART, save_latest=False)
        return self._writer.saved, self._writer.error

    def restore(self, folder: Path) -> None:
        """Read the restart files back. The caller has verified them: DeepSpeed unpickles. Collective."""
        self._engine.load_checkpoint(str(folder), tag=RESTART, load_lr_scheduler_states=False)

    def close(self) -> None:
        self._engine.destroy()


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _adam(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Adam (paper S3); with ``train.weight_decay`` it is decoupled and spares vectors (norms, biases, scales)."""
    t = config.train
    # ZeRO-1 and 2 lay weights end to end in this order. Tensors whose bytes are no multiple of 16 come last: behind
    # one, every weight would be misaligned, and a matrix product would read it element by element.
    parameters = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: math.prod(_shape(p)) % 8 != 0)
    groups = [{"params": parameters, "weight_decay": 0.0}]
    if t.weight_decay:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": t.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=t.peak_lr, betas=(t.betas[0], t.betas[1]), eps=t.eps, fused=True)


def import_deepspeed(ranks: Ranks) -> Any:
    """DeepSpeed, quiet, bound to the running process group, without its compiled operators.

    Raises:
        ModuleNotFoundError: it is not installed (`pip install 'aef-engine[deepspeed]'`).
    """
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # A shared-memory collective that DeepSpeed would compile on a CPU, 25-60 s and a C++ compiler; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with contextlib.redirect_stdout(None):
        deepspeed.init_distributed(
            dist_backend="nccl" if ranks.device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
        )
    return deepspeed


def _recording_writer() -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Writer(TorchCheckpointEngine):
        """Remembers which files this rank wrote and, instead of raising between two barriers, what failed."""

        def begin(self) -> None:
            self.saved: list[Path] = []
            self.error: Exception | None = None

        def save(self, state_dict: Any, path: str) -> None:
            try:
                torch.save(state_dict, path)
                self.saved.append(Path(path))
            except (OSError, RuntimeError) as error:
                self.error = error

    writer = Writer()
    writer.begin()
    return writer
