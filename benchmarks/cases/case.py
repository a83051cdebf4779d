"""What a case is: an operator at one shape, the ways to compute it, and which of them dispatch can choose."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from aef.kernels import dispatch
from benchmarks import roofline

Arguments = tuple
Contender = Callable[..., Tensor | tuple[Tensor, ...]]
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""The back ends of PyTorch's attention, each of which is a rung of its own."""


@dataclass(frozen=True)
class Decision:
    """What a case decides for the tables of `kernels/configs`: the backend of `operator` at `sizes`.

    `backends` are those that "ours" is run by; `stock` names contenders that are such a backend's own path.
    """

    operator: str
    sizes: Mapping[str, int]
    backends: tuple[str, ...] = ("triton",)
    stock: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An operator at one shape: its arguments (differentiable tensors first), contenders, and floors.

    "reference" is the specification and "ours" the public function. A compiler is given those in `compiled`; those in
    `only_compiled` are nothing without it.
    """

    operator: str
    shape: str
    make: Callable[[torch.device, torch.dtype], Arguments]
    contenders: dict[str, Contender]
    work: roofline.Direction
    decision: Decision
    value: int = 1
    """How much a measurement is worth: rows of the GPU run go from the highest down."""
    compiled: tuple[str, ...] = ("eager",)
    only_compiled: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.operator} {self.shape}"

    def table_choice(self, request: str = "auto") -> dispatch.Choice | None:
        """What dispatch answers a request where this case's operator asked it in this process; None where it did not."""
        for _, operator, device, dtype, sizes in reversed(dispatch.asked()):
            if operator == self.decision.operator and self.decision.sizes.items() <= dict(sizes).items():
                return dispatch.decide(request, operator, dispatch.Case(device, dtype, dict(sizes)))
        return None

    def by(self, backend: str) -> contextlib.AbstractContextManager[None]:
        """Within the block the deciding operator runs by `backend`; "" leaves it to dispatch."""
        return dispatch.preferring(self.decision.operator, backend) if backend else contextlib.nullcontext()


def leaves(arguments: Arguments) -> list[Tensor]:
    """The arguments that get gradients."""
    return [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]


def as_outputs(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a contender returned; some have several outputs."""
    return found if isinstance(found, tuple) else (found,)


def cotangents_of(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Random gradients of the outputs."""
    return tuple(torch.randn_like(one) for one in outputs)


def run(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...] | None) -> None:
    """One forward, and one backward if cotangents are given."""
    if cotangents is None:
        with torch.no_grad():
            contender(*arguments)
    else:
        torch.autograd.grad(as_outputs(contender(*arguments)), leaves(arguments), cotangents)


def offsets(lengths: list[int], device: torch.device) -> Tensor:
    """`cu_frames` of segments of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)


def random_leaf(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal values that get a gradient."""
    return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()


def eager_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PyTorch's LayerNorm over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
