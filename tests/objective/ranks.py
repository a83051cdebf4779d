"""One rank of the test that results do not depend on the number of ranks: python ranks.py RANK SPLIT STORE OUT.

SPLIT lists the global indices of each rank, such as ``2|0,1,3``, and of each pass of a step that is accumulated, such as
``2|0,1;3``. Writes losses and gradients of every case to OUT.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from aef.config import DataConfig, ObjectiveConfig
from aef.data.collate import Collator
from aef.data.sample import Sample, Target, Text
from aef.data.statistics import Statistics
from aef.objective.objective import Objective, text_pairs
from aef.objective.world import World
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period

SIDE, DIM, TARGETS = 16, 6, ("sentinel2", "landsat", "nlcd")
CASES = {
    "everything": {"places": "ABCD", "texts": {0: 1, 1: 2, 2: 3, 3: 4}},
    "unequal texts": {"places": "AABA", "texts": {0: 1, 1: 2, 3: 1}},
    "one text": {"places": "ABAB", "texts": {1: 5}},
    "one place": {"places": "AAAA", "texts": {}},
    "pairs of chips": {"places": "ABCD", "texts": {1: 1, 3: 2}, "partner_chips": 2},
    "channels": {"places": "ABCA", "texts": {2: 8, 3: 9}, "uniformity": "channels"},
}


def period(index, days):
    return Period(index * DAY_MS, (index + days) * DAY_MS)


def sample(index, case):
    rng = np.random.default_rng(index)
    targets = {}
    for name in TARGETS[: 1 + index % 3]:  # rows hold different sources
        targets[name] = [
            Target(
                values=rng.uniform(1, 90, (SIDE, SIDE, BUILT_IN[name].channels)).round().astype(np.float32),
                valid=rng.random((SIDE, SIDE, 1)) > 0.2,
                weight=rng.integers(0, 256, (SIDE, SIDE, 1)).astype(np.uint8),
                time_ms=0,
                metadata=np.zeros(len(BUILT_IN[name].metadata), np.float32),
                period=period(index, 30),
            )
        ]
    identity = case["texts"].get(index)
    texts = (Text(np.ones(2, np.float32), index, 2 * index, 1.5, period(index, 20), identity),) if identity else ()
    return Sample(
        id=f"sample{index}",
        place=case["places"][index],
        global_index=index,
        support=period(0, 365),
        side_px=SIDE,
        teacher={},
        targets=targets,
        consistency_period=period(index, 10),
        texts=texts,
    )


def leaf(key, *shape):
    return torch.from_numpy(np.random.default_rng(key).normal(size=shape)).requires_grad_()


class Pass:
    """A batch of some samples, random outputs for it, and the leaves that these are made of."""

    def __init__(self, case, indices, scale):
        self.indices = indices
        self.batch = batch = Collator(BUILT_IN, (), TARGETS, text_dim=2)([sample(i, case) for i in indices])
        self.summaries = [
            (indices[s // 2], s % 2, int(p[1])) for s, p in zip(batch.period_segment.tolist(), batch.periods.tolist())
        ]
        self.mean = [leaf([1, *summary], SIDE, SIDE, DIM) for summary in self.summaries]
        self.text = [leaf([2, indices[s]], DIM) for s in batch.text.sample.tolist()]
        self.reconstructions = {
            name: [
                leaf([3, number, indices[s]], SIDE, SIDE, BUILT_IN[name].decoded_channels)
                for s in block.sample.tolist()
            ]
            for number, (name, block) in enumerate(batch.targets.items())
        }
        self.output = SimpleNamespace(
            mean=F.normalize(torch.stack(self.mean), dim=-1),
            text=F.normalize(torch.stack(self.text), dim=-1),
            reconstructions={name: torch.stack(leaves) for name, leaves in self.reconstructions.items()},
            logit_scale=scale,
        )

    def gradients(self):
        """By what they belong to; summaries of dummies and of targets are not read."""
        found = {
            "mean {} {} {}".format(*summary): leaf.grad
            for summary, leaf in zip(self.summaries, self.mean)
            if leaf.grad.any()
        }
        block = self.batch.text
        for s, identity, leaf in zip(block.sample.tolist(), block.identity, self.text):
            if identity is not None and leaf.grad.any():
                found[f"text {self.indices[s]}"] = leaf.grad
        for name, leaves in self.reconstructions.items():
            block = self.batch.targets[name]
            for s, weight, leaf in zip(block.sample.tolist(), block.item_weight.tolist(), leaves):
                if weight:
                    found[f"{name} {self.indices[s]}"] = leaf.grad
        return found


def run(case, parts, world):
    """Losses, and gradients by what they belong to, so that ranks can be put together."""
    config = ObjectiveConfig(
        text_weight=0.5,
        uniformity_weight=1.0,
        uniformity=case.get("uniformity", "pairs"),
        partner_chips=case.get("partner_chips", 0),
    )
    objective = Objective(config, BUILT_IN, Statistics.identity(BUILT_IN, TARGETS), TARGETS, data=DataConfig())
    scale = torch.tensor([2.2], dtype=torch.float64, requires_grad=True)
    made = [Pass(case, indices, scale) for indices in parts]
    if len(made) == 1:
        losses = objective(made[0].output, made[0].batch, world=world)
    else:
        losses = objective.report(in_passes(objective, made, world), world)
    losses.total.backward()
    gradients = {name: gradient for one in made for name, gradient in one.gradients().items()}
    gradients["scale"] = scale.grad
    return {"losses": losses.record(), "total": losses.total.item(), "gradients": gradients}


def in_passes(objective, made, world):
    """Shares of an accumulated step, as `aef.training` takes them."""
    passes = objective.couple_passes([one.batch for one in made], world)
    couplings, shares = passes.couplings, []
    if passes.ahead is not None:
        fields = [one.output.mean[one.batch.teacher_row[rows]] for one, rows in zip(made, passes.chosen, strict=True)]
        pairs = [text_pairs(one.output, one.batch, c.text_rows) for one, c in zip(made, couplings, strict=True)]
        text, place = (torch.cat(vectors) for vectors in zip(*pairs, strict=True))
        share, couplings = objective.share_ahead(passes, torch.cat(fields), text, place, made[0].output.logit_scale)
        shares.append(share)
    return shares + [objective.share(one.output, one.batch, c) for one, c in zip(made, couplings, strict=True)]


def main(rank, split, store, out):
    parts = [[[int(i) for i in one.split(",")] for one in part.split(";")] for part in split.split("|")]
    if len(parts) > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(parts))
    world = World.current()
    torch.save({name: run(case, parts[rank], world) for name, case in CASES.items()}, out)
    if len(parts) > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
