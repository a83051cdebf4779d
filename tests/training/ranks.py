"""One rank of the equality tests: python ranks.py RANK SIZE STORE OUT CASE [CASE …]

A case is STAGE[+checkpoint][+micro][+pairs][+sharded][+compile][+bf16][+large]: ZeRO stage; whole-block activation
checkpointing; micro-batches of one sample; eight samples whose uniformity partners are pairs, the first four with texts,
and micro-batches of two; ZeRO-3 that shards even the smallest parameter; blocks compiled; bf16 as on a GPU; one step of the preset `large` at 16 px instead of ten of `tiny`. Writes to OUT, as JSON,
the losses of every step, whether the poisoned step left everything as it was, the sum of the final weights, and the
share of averaged gradients that bf16 could not hold.
"""

import dataclasses
import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_samples, collate

from aef.config import PRESETS
from aef.data.statistics import Statistics
from aef.model.aef import AEF
from aef.objective.objective import Objective
from aef.sources import BUILT_IN
from aef.training.deepspeed_config import resolve
from aef.training.deepspeed_engine import Engine
from aef.training.distributed import start
from aef.training.schedule import learning_rate
from aef.training.step import take_step

STEPS, GLOBAL_BATCH, POISONED = 10, 4, 5
INPUTS, TARGETS = ("sentinel2", "sentinel1", "landsat"), ("sentinel2", "sentinel1", "landsat", "era5_land", "nlcd")
TEXT_DIM = 6
# Of every four samples the first two and the last two share no source, so neither do two ranks.
HALVES = (
    {"frames": {"sentinel2": 4}, "targets": ("sentinel2", "nlcd"), "text_dim": TEXT_DIM},
    {"frames": {"sentinel1": 3, "landsat": 2}, "targets": ("sentinel1", "landsat", "era5_land"), "text_dim": 0},
)


RECOMPUTED = {"checkpoint": "full", "remake": "selective"}


def samples_of(step, pairs=False):
    """The global batch of one step; the poisoned one holds a NaN that claims to be valid."""
    found = []
    for half, options in enumerate(HALVES * (1 + pairs)):
        options = {**options, "text_dim": 0 if half > 1 else TEXT_DIM} if pairs else options
        for sample in build_samples(2, seed=1000 * step + half, **options):
            number = len(found)
            found.append(
                dataclasses.replace(sample, id=f"chip{number}", place=f"place{number % 3}", global_index=number)
            )
    if step == POISONED:
        frames = found[-1].teacher["sentinel1"]
        frames.values[0, 3, 3, 0], frames.valid[0, 3, 3, 0] = float("nan"), True
    return found


def build_config(case):
    base, tiny = PRESETS["large" if "large" in case else "tiny"], PRESETS["tiny"]
    pairs = "pairs" in case
    batch = GLOBAL_BATCH * (1 + pairs)
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(
            base.model,
            text_dim=TEXT_DIM,
            checkpointing=next((kind for word, kind in RECOMPUTED.items() if word in case), "none"),
            inputs=INPUTS,
            compile="compile" in case,
            compute_dtype="bfloat16" if "bf16" in case else "float32",
        ),
        objective=dataclasses.replace(tiny.objective, text_weight=0.1, partner_chips=2 if pairs else 0),
        train=dataclasses.replace(
            tiny.train, steps=STEPS, global_batch=batch, micro_batch=1 + pairs if "micro" in case else batch
        ),
    )


def configuration(case, config, ranks, parameters):
    stage = case[0]
    found = resolve(
        None if stage == "0" else f"zero{stage}", config, ranks=ranks.size, on_gpu=False, parameters=parameters
    )
    if stage == "0":
        found["zero_optimization"] = {"stage": 0}
    if "sharded" in case:
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return found


def digest(value, into=None):
    """Hash of every tensor and number in nested containers."""
    top = into is None
    into = into or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        into.update(value.detach().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest(value[key], into)
    elif isinstance(value, list | tuple):
        for item in value:
            digest(item, into)
    elif isinstance(value, int | float):
        into.update(repr(value).encode())
    return into.hexdigest() if top else None


def inner_state(engine):
    """Moments and step counts of the innermost optimiser."""
    optimizer = engine._optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return {str(i): dict(state) for i, state in enumerate(optimizer.state.values())}


def watch_gradients(engine):
    """The share of the averaged gradients that bf16 cannot hold, of each step as it is taken."""
    shares, step = [], engine.step

    def watched(lr):
        gradients = [safe_get_full_grad(p) for p in engine.model.parameters()]
        beyond = [(g != g.bfloat16()).double().mean() for g in gradients if g is not None and g.isfinite().all()]
        shares.append(float(sum(beyond) / max(len(beyond), 1)))
        return step(lr)

    engine.step = watched
    return shares


def train(case, ranks):
    config = build_config(case)
    torch.manual_seed(0)
    statistics = Statistics.identity(BUILT_IN, dict.fromkeys((*INPUTS, *TARGETS)))
    model = AEF(config.model, BUILT_IN, statistics, inputs=INPUTS, targets=TARGETS)
    names = [name for name, _ in model.named_parameters()]
    parameters = sum(p.numel() for p in model.parameters())
    engine = Engine(model, config, configuration(case, config, ranks, parameters), ranks)
    finer = watch_gradients(engine) if "bf16" in case else []
    objective = Objective(config.objective, BUILT_IN, statistics, TARGETS, data=config.data)
    share, losses, untouched, suspects, step = config.train.global_batch // ranks.size, [], None, [], 0
    forwards = []
    engine.model.register_forward_hook(lambda *_: forwards.append(step))
    micro = config.train.micro_batch
    for number in range(1 if "large" in case else STEPS + 1):
        own = samples_of(number, "pairs" in case)[ranks.rank * share : (ranks.rank + 1) * share]
        parts = [own[i : i + micro] for i in range(0, share, micro)]
        bucket = 32 if "compile" in case else 0  # one length, to be compiled for once
        batches = [
            collate(part, inputs=INPUTS, targets=TARGETS, text_dim=TEXT_DIM, frame_bucket=bucket) for part in parts
        ]
        poisoned = number == POISONED
        if poisoned:
            before = digest([engine.weights(), inner_state(engine)])
        lr = learning_rate(step + 1, steps=STEPS, warmup=2, peak=3e-3)
        done = take_step(engine, objective, batches, lr)
        assert (done.grad_norm is None) == poisoned, (number, done.grad_norm)
        if poisoned:
            untouched = before == digest([engine.weights(), inner_state(engine)])
            suspects = ranks.gather(done.suspects)
            continue
        step += 1
        losses.append({**done.losses.record(), "grad_norm": done.grad_norm})
    weights = engine.weights()
    result = {"losses": losses, "untouched": untouched, "suspects": [name for own in suspects for name in own]}
    result["finer_than_bf16"], result["first_forwards"] = finer, forwards.count(0)
    if weights is not None:
        result["weights"] = {name: float(weights[name].double().sum()) for name in names}
        result["some"] = {
            name: weights[name].flatten()[:: max(1, weights[name].numel() // 16)].tolist() for name in names
        }
    held = sum(p.numel() if not hasattr(p, "ds_id") else p.ds_tensor.numel() for p in engine.model.parameters())
    result["held_share"] = held / parameters
    engine.close()
    return result


def main():
    rank, size, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=300)
    )
    ranks = start(timeout_s=300)
    Path(out).write_text(json.dumps({case: train(case, ranks) for case in sys.argv[5:]}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
