"""DeepSpeed: its configuration, and an engine that skips non-finite steps and gives up its weights at every stage.

One rank on a CPU uses stage 0 in fp32, everything else ZeRO-1 unless told otherwise (`docs/training.md` says what each
shipped configuration costs). Adam is torch's own: DeepSpeed's would be compiled at first use. Neither a C++ compiler
nor MPI is needed on a CPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aef.config import Config, ConfigError

from .checkpoint import RESTART
from .devices import attend_without_plans, gpu_without_bf16, keep_freed_memory
from .distributed import Ranks

log = logging.getLogger("aef.training")
SHIPPED = Path(__file__).parents[1] / "launcher" / "configs" / "deepspeed"
OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
REFUSED = ("optimizer", "scheduler", "fp16", "amp", "torch_autocast")
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
SMALLEST_BUCKET, LARGEST_BUCKET = 2**20, 2 * 10**8


# --- configuration ---------------------------------------------------------------------------------------------------


def shipped_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_configuration(choice: str | None, ranks: int, on_gpu: bool) -> dict[str, Any]:
    """A DeepSpeed configuration by shipped name or from a JSON file; by default stage 0 on one CPU rank, else ZeRO-1.

    Raises:
        ConfigError: no such name or file, not JSON, or a key that training sets itself.
    """
    choice = choice or ("single" if ranks == 1 and not on_gpu else "zero1")
    path = SHIPPED / f"{choice}.json" if choice in shipped_names() else Path(choice)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(shipped_names())
        raise ConfigError(f"--deepspeed-config {choice}: expected {known} or a JSON file; no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed-config {path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--deepspeed-config {path}: expected a mapping, found {type(found).__name__}")
    for key in (*OWNED, *REFUSED):
        if key in found:
            raise ConfigError(f"--deepspeed-config {path}: {key} is set by the train.* settings: remove it there")
    return found


def resolve(
    choice: str | None, config: Config, *, ranks: int, on_gpu: bool, parameters: int, universal: bool = False
) -> dict[str, Any]:
    """The complete DeepSpeed configuration of a run: "auto" entries filled in, batch sizes and clipping added.

    ``bf16.enabled`` = auto means: from ZeRO-1 up, on a GPU that has bf16 or where ``model.compute_dtype`` asks for it.
    Bucket sizes = auto means: the model's size, so that a small model does not allocate gigabytes. With bf16, gradients are
    summed and cross ranks in fp32 unless ``communication_data_type`` says otherwise.

    Raises:
        ConfigError: as `read_configuration`; bf16 asked of a GPU that lacks it; bf16 at stage 0 (DeepSpeed takes another, worse path there); a batch that
            does not spread evenly over the ranks; `model.cuda_graphs` where graphs cannot be replayed.
    """
    found = read_configuration(choice, ranks, on_gpu)
    zero = found.setdefault("zero_optimization", {})
    stage = zero.setdefault("stage", 0)
    bf16 = found.setdefault("bf16", {"enabled": False})
    lacking = gpu_without_bf16() if on_gpu else None
    if bf16.get("enabled") == "auto":
        bf16["enabled"] = stage >= 1 and ((on_gpu and not lacking) or config.model.compute_dtype == "bfloat16")
        if lacking and not bf16["enabled"]:
            _say_fp32(lacking)
    if lacking and (bf16.get("enabled") or config.model.compute_dtype == "bfloat16"):
        raise ConfigError(f"{lacking} has no bf16: set model.compute_dtype=float32, and no bf16 in --deepspeed-config")
    if bf16.get("enabled") and stage == 0:
        raise ConfigError("DeepSpeed's bf16 at stage 0 loses precision: take zero1, or model.compute_dtype=bfloat16")
    if bf16.get("enabled"):
        found.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        # What was summed in fp32 would be rounded to cross ranks.
        found.setdefault("communication_data_type", "fp32")
    for key in BUCKETS:
        if zero.get(key) == "auto":
            zero[key] = min(max(parameters, SMALLEST_BUCKET), LARGEST_BUCKET)
    left = [key for section in found.values() if isinstance(section, dict) for key in section if section[key] == "auto"]
    if left:
        raise ConfigError(
            f"--deepspeed-config: only bf16.enabled and bucket sizes may be auto, found {', '.join(left)}"
        )
    micro, count = micro_batches(config, ranks)
    if config.model.cuda_graphs:
        _require_graphs(config, stage, on_gpu, config.train.global_batch // ranks if count > 1 else 0)
    found.update(
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=count,
        train_batch_size=micro * count * ranks,
        # At stage 0 the engine clips itself, as it must look at the norm before the step.
        gradient_clipping=config.train.clip_norm if stage else 0.0,
        zero_allow_untested_optimizer=True,
        steps_per_print=None,
    )
    if universal:
        found.setdefault("checkpoint", {})["load_universal"] = True
    return found


@functools.cache  # once, however often a run asks for its configuration
def _say_fp32(gpu: str) -> None:
    log.warning("training in fp32: %s has no bf16, which came with compute capability 8.0", gpu)


def _require_graphs(config: Config, stage: int, on_gpu: bool, accumulated: int) -> None:
    """Refuse `model.cuda_graphs` where a recorded graph would not fit the next step; says what to set.

    ``accumulated``: samples of a rank's step where it takes several micro-batches, else 0.
    """
    problems = {
        "graphs are recorded on an NVIDIA GPU, and none is here: set model.cuda_graphs=false": not on_gpu,
        "ZeRO-3 gathers weights at new addresses, and a graph keeps its own: take --deepspeed-config zero2, or "
        "model.compile=true instead": stage == 3,
        "every number of frames would be a graph of its own: set data.frame_bucket, for example to 8": (
            not config.data.frame_bucket
        ),
        "a block that runs forward again in backward has not been proven with graphs: set model.checkpointing=selective": (
            config.model.checkpointing == "full"
        ),
        "a graph would overwrite the gradients of the micro-batch before: set train.micro_batch="
        f"{accumulated} or model.cuda_graphs=false": accumulated > 0,
    }
    found = next((words for words, holds in problems.items() if holds), None)
    if found:
        raise ConfigError(f"model.cuda_graphs: {found}")


def micro_batches(config: Config, ranks: int) -> tuple[int, int]:
    """(samples of a forward pass, forward passes of a step) on each rank. Raises ConfigError if ranks do not divide."""
    total = config.train.global_batch
    if total % ranks:
        raise ConfigError(f"train.global_batch: expected a multiple of the {ranks} ranks, found {total}")
    share = total // ranks
    micro = min(config.train.micro_batch, share)
    return micro, math.ceil(share / micro)


def stage_of(configuration: Mapping[str, Any]) -> int:
    return int(configuration.get("zero_optimization", {}).get("stage", 0))


def precision_of(configuration: Mapping[str, Any]) -> str:
    return "bfloat16" if configuration.get("bf16", {}).get("enabled") else "float32"


def gradient_bytes(configuration: Mapping[str, Any]) -> int:
    """Of one gradient's value as it crosses ranks."""
    return 4 if configuration.get("communication_data_type", "fp32").lower() == "fp32" else 2


# --- the engine ------------------------------------------------------------------------------------------------------


class Engine:
    """A model, its Adam and DeepSpeed around them.

    Use: ``output = engine(batch)``, ``engine.backward(loss, last=True)``, ``norm = engine.step(lr)``.
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
        self._writer = _recording_writer()
        self._engine.checkpoint_engine = self._writer
        # It copies a script that unpickles; model.safetensors makes it needless.
        self._engine._copy_recovery_script = lambda save_path: None

    @property
    def model(self) -> nn.Module:
        return self._engine.module

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

        found = {}
        for name, parameter in self.model.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if self.stage else None
            whole = parameter.detach() if whole is None else whole
            if self.ranks.is_first:
                found[name] = whole.to("cpu", torch.float32, copy=True).view(_shape(parameter)).contiguous()
        return found if self.ranks.is_first else None

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
    # ZeRO-1 and 2 lay weights end to end in this order. Tensors whose bytes are no multiple of 16 come last: behind one,
    # every weight would be misaligned, and a matrix product would read it element by element.
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
