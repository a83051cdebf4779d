"""DeepSpeed's configuration of a run: a shipped one or a file, completed by the `train.*` settings, refused where it cannot be.

One rank on a CPU uses stage 0 in fp32, everything else ZeRO-1 unless told otherwise (`docs/training.md` says what each
shipped configuration costs).
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aef.config import Config, ConfigError
from aef.path import as_path

from .devices import gpu_without_bf16

log = logging.getLogger("aef.training")
SHIPPED = Path(__file__).parents[1] / "launcher" / "configs" / "deepspeed"
OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
REFUSED = ("optimizer", "scheduler", "fp16", "amp", "torch_autocast")
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
SMALLEST_BUCKET, LARGEST_BUCKET = 2**20, 2 * 10**8


def shipped_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_configuration(choice: str | os.PathLike | None, ranks: int, on_gpu: bool) -> dict[str, Any]:
    """A DeepSpeed configuration by shipped name or from a JSON file; by default stage 0 on one CPU rank, else ZeRO-1.

    Raises:
        ConfigError: no such name or file, not JSON, or a key that training sets itself.
        TypeError, ValueError: neither a name nor a path.
    """
    if choice is None:
        choice = "single" if ranks == 1 and not on_gpu else "zero1"
    choice = str(as_path(choice, "deepspeed_config"))
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
    choice: str | os.PathLike | None,
    config: Config,
    *,
    ranks: int,
    on_gpu: bool,
    parameters: int,
    universal: bool = False,
) -> dict[str, Any]:
    """The complete DeepSpeed configuration of a run: "auto" entries filled in, batch sizes and clipping added.

    ``bf16.enabled`` = auto means: from ZeRO-1 up, on a GPU that has bf16 or where ``model.compute_dtype`` asks for it.
    Bucket sizes = auto means: the model's size, so that a small model does not allocate gigabytes. With bf16, gradients
    are summed and cross ranks in fp32 unless ``communication_data_type`` says otherwise.

    Raises:
        ConfigError: as `read_configuration`; bf16 asked of a GPU that lacks it; bf16 at stage 0 (DeepSpeed takes
            another, worse path there); a batch that does not spread evenly over the ranks; `model.cuda_graphs` where
            graphs cannot be replayed.
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


def row_of_a_pass(config: Config, ranks: int) -> int:
    """How many samples that follow each other in the global order stay in one pass, so that few meet their uniformity
    partners elsewhere: a ring (`objective.partner_chips`) where it fits, of the whole batch what an accumulated pass
    holds; 0 where neither divides, and of the reading R2, where all meet all."""
    micro, count = micro_batches(config, ranks)
    crops, share = config.data.crops_per_chip, config.train.global_batch // ranks
    in_rows = count > 1 and micro % crops == 0 and config.objective.uniformity == "pairs"
    row = config.objective.ring(config.data) or (micro if in_rows else 0)
    return row if row and micro % row == 0 and share % row == 0 else 0


def asking_ahead(config: Config, ranks: int) -> float:
    """Share of the samples whose uniformity partner is in another pass of an accumulated step, so that both are embedded
    ahead of them (`aef.training.ahead`); of the reading R2, a mean over all samples, all."""
    _, count = micro_batches(config, ranks)
    row, pairs = row_of_a_pass(config, ranks), config.objective.uniformity == "pairs"
    if count == 1 or (pairs and row and config.objective.partner_chips):
        return 0.0
    return config.data.crops_per_chip / row if pairs and row else 1.0


def teachers_ahead(config: Config, ranks: int) -> float:
    """Share of the teachers that go ahead for uniformity: of the samples that ask, and of their partners."""
    return min(1.0, 2 * asking_ahead(config, ranks))


def stage_of(configuration: Mapping[str, Any]) -> int:
    return int(configuration.get("zero_optimization", {}).get("stage", 0))


def precision_of(configuration: Mapping[str, Any]) -> str:
    return "bfloat16" if configuration.get("bf16", {}).get("enabled") else "float32"


def gradient_bytes(configuration: Mapping[str, Any]) -> int:
    """Of one gradient's value as it crosses ranks."""
    return 4 if configuration.get("communication_data_type", "fp32").lower() == "fp32" else 2
