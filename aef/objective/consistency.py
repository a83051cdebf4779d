"""Teacher/student consistency (paper section 4.4): (1 − μ · μ_s) / 2, gradients through both."""

from torch import Tensor


def consistency(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over the pixels of (1 − μ · μ_s) / 2: (B, H, W, D) unit vectors, twice → (B,), 0 (equal) to 1 (opposite)."""
    return ((1 - (teacher * student).sum(-1)) / 2).flatten(1).mean(1)
