"""The learning rate: 0 to its peak over the warm-up, then to 0 at the last step, piecewise linear (paper section S3)."""

from __future__ import annotations


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of optimiser step ``step``, counted from 1; step 0 is the untrained model.

        peak · step / warmup                          up to the warm-up's end
        peak · (steps − step) / (steps − warmup)      from there to the last step

    Raises:
        ValueError: the step lies outside 0 … steps.
    """
    if not 0 <= step <= steps:
        raise ValueError(f"step {step} lies outside the run of {steps} steps")
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step) / (steps - warmup)
