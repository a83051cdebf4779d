"""What couples the samples of a global batch, settled by the host before the forward pass.

Which sample is whose partner (uniformity) and which texts are negatives (contrastive term) depend on identities only,
not on any output. Settled first, while nothing is queued on the device, they cost next to nothing; asked for between
forward and backward, every answer would make the host wait until the whole forward pass is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aef.data.batch import Batch
from aef.objective.contrastive import same_texts
from aef.objective.uniformity import Partners
from aef.objective.world import World


@dataclass(frozen=True)
class Coupling:
    """One rank's view of the global batch; the same samples and texts per rank on all of them.

    samples: of each rank; partners: None where the global batch holds one place only.
    texts: of each rank; text_rows (K,) int64, this rank's rows of ``Batch.text`` without the dummy; same_text (K, texts
    of all ranks) bool, pairs that are no negatives: None where there are fewer than two different texts.
    """

    world: World
    samples: list[int]
    partners: Partners | None
    texts: list[int]
    text_rows: Tensor
    same_text: Tensor | None

    @classmethod
    def of(cls, batch: Batch, world: World | None = None) -> Coupling:
        """Settle it for this rank's samples. Collective; `world` None: the running process group."""
        world = world or World.current()
        rows = [row for row, identity in enumerate(batch.text.identity) if identity is not None]
        identities = [identity for identity in batch.text.identity if identity is not None]
        device = batch.teacher_row.device
        known = world.share((batch.global_index, batch.places, identities), device)
        samples, texts = [len(places) for _, places, _ in known], [len(texts) for _, _, texts in known]
        index, places, everyone = ([one for rank in known for one in rank[which]] for which in range(3))
        same = same_texts(everyone, sum(texts[: world.rank]), len(rows))
        partners = Partners.of(index, places, world, samples)
        return cls(
            world=world,
            samples=samples,
            partners=None if partners is None else partners.to(device),
            texts=texts,
            text_rows=torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True),
            same_text=None if same is None else same.to(device, non_blocking=True),
        )
