"""What a step holds on the device while it runs, and what becomes of a run where that does not fit."""

import dataclasses
import weakref

import pytest
import torch

from aef.config import PRESETS
from aef.data.random_batch import random_batch
from aef.data.statistics import Statistics
from aef.model.aef import AEF
from aef.objective.objective import Objective
from aef.sources import BUILT_IN
from aef.training import Trainer
from aef.training.bad_chips import suspects
from aef.training.checkpoint import Checkpoints
from aef.training.step import take_step
from aef.training.trainer import TrainingError

INPUTS, TARGETS = ("sentinel2", "sentinel1"), ("sentinel2", "nlcd")


class Engine:
    """One rank's, which knows of each batch that it has moved whether it lives."""

    device = torch.device("cpu")

    def __init__(self, model, micro_batches, grad_norm=1.0):
        self.model, self.micro_batches, self.grad_norm = model, micro_batches, grad_norm
        self.moved_batches, self.most_alive, self.gradients = [], 0, []

    def moved(self, batch):
        moved = batch.to(self.device)
        self.moved_batches.append(weakref.ref(moved))
        self.most_alive = max(self.most_alive, sum(one() is not None for one in self.moved_batches))
        return moved

    def __call__(self, batch):
        return self.model(batch)

    def backward(self, loss, *, last):
        loss.backward()
        self.gradients.append(last)

    def step(self, lr):
        return self.grad_norm


@pytest.fixture
def parts():
    tiny = PRESETS["tiny"]
    config = dataclasses.replace(tiny, objective=dataclasses.replace(tiny.objective, partner_chips=0))
    statistics = Statistics.identity(BUILT_IN, (*INPUTS, *TARGETS))
    torch.manual_seed(0)
    model = AEF(config.model, BUILT_IN, statistics, inputs=INPUTS, targets=TARGETS)
    objective = Objective(config.objective, BUILT_IN, statistics, TARGETS, data=config.data)
    batches = [random_batch(config, BUILT_IN, INPUTS, TARGETS, 2, first=first) for first in (0, 2, 4)]
    return model, objective, batches


def test_only_the_pass_at_work_holds_its_samples_on_the_device(parts):
    model, objective, batches = parts
    engine = Engine(model, (2, 3))
    take_step(engine, objective, batches, lr=0.0)
    assert engine.gradients == [False, False, True]
    assert len(engine.moved_batches) == 3 and engine.most_alive == 1


def test_samples_of_a_skipped_step_are_looked_at_one_pass_after_the_other(parts):
    model, objective, batches = parts
    batches[1].frames["sentinel2"].values.fill_(float("nan"))
    engine = Engine(model, (2, 3), grad_norm=None)
    step = take_step(engine, objective, batches, lr=0.0)
    assert step.suspects == batches[1].sample_ids == suspects(engine, batches)
    assert engine.most_alive == 1


def fill_memory(trainer, step, module):
    """Let a step fail where a module of the model runs, or in its update."""

    def fail(*_, **__):
        if trainer.position.step == step - 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    if module:
        trainer.engine.model.get_submodule(module).register_forward_pre_hook(fail)
    else:
        trainer.engine._optimizer.register_step_pre_hook(fail)


def test_a_step_that_does_not_fit_leaves_a_checkpoint_and_goes_on_with_smaller_passes(chips, tmp_path, make_config):
    run = tmp_path / "run"
    with Trainer(make_config(), chips, run, quiet=True) as trainer:
        fill_memory(trainer, 5, "summary")
        with pytest.raises(TrainingError, match="a checkpoint is written, go on") as caught:
            trainer.fit()
    said = str(caught.value)
    assert said.startswith("step 5: a pass of ") and "(CUDA out of memory. Tried to allocate 2 GiB)" in said
    assert "lower train.micro_batch (2 now), or set model.checkpointing=selective or full" in said
    assert [path.name for path in Checkpoints(run, keep=2).all()] == ["step-00000004", "step-00000003"]
    with Trainer(make_config(micro_batch=1), chips, run, resume="auto", quiet=True) as trainer:
        assert trainer.fit()


def test_weights_of_an_update_that_did_not_fit_are_no_checkpoint(chips, tmp_path, make_config):
    run = tmp_path / "run"
    with Trainer(make_config(), chips, run, quiet=True) as trainer:
        fill_memory(trainer, 5, None)
        with pytest.raises(TrainingError, match=r"step 5: a pass of .*does not fit") as caught:
            trainer.fit()
    assert "a checkpoint is written" not in str(caught.value)
    assert [path.name for path in Checkpoints(run, keep=2).all()] == ["step-00000003"]
