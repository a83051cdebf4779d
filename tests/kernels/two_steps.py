"""The first two losses of `tiny` on one 32-px sample: the same step through every backend."""

import torch

from aef.config import PRESETS
from aef.data.collate import Collator
from aef.model.aef import AEF
from aef.objective.objective import Objective
from aef.sources import BUILT_IN
from tests.training import test_golden as golden

INPUTS = {"sentinel2": (3, 1800, 900), "sentinel1": (2, -12, 4), "landsat": (2, 0.3, 0.1)}
LOSSES = [0.982692, 0.929781]
"""On the CPU's tuned path. As with the golden losses, a change is a change of the model: update only with the reason."""


class TwoSteps:
    """One sample, and as many fresh models as wanted to train on it twice."""

    def __init__(self, monkeypatch, device: str = "cpu") -> None:
        monkeypatch.setattr(golden, "SIDE", 32)
        monkeypatch.setattr(golden, "INPUTS", INPUTS)
        samples = golden.build_samples()[:1]
        self.statistics = golden.statistics_of(samples)
        self.inputs, self.targets = list(INPUTS), list(golden.TARGETS)
        self.batch = Collator(BUILT_IN, self.inputs, self.targets)(samples).to(device)

    def __call__(self, before=lambda step, batch: batch) -> tuple[list[float], dict[str, torch.Size]]:
        """Both losses, and the parameters' shapes by name. `before(step, batch)` may change the batch of a step."""
        torch.manual_seed(0)
        config, sources = PRESETS["tiny"], {"inputs": self.inputs, "targets": self.targets}
        model = AEF(config.model, BUILT_IN, self.statistics, **sources)
        model = model.to(self.batch.cu_frames.device)
        objective = Objective(config.objective, BUILT_IN, self.statistics, self.targets, data=config.data)
        optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
        for step in range(2):
            batch = before(step, self.batch)
            loss = objective(model(batch), batch).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses, {name: one.shape for name, one in model.state_dict().items()}
