"""The three lanes of the kernel tests, each a process of its own, and what they share.

plain    pytest tests                                   references, PyTorch paths, operators, dispatch
interp   TRITON_INTERPRET=1 pytest tests/kernels -m interp   the real kernels on CPU tensors
aot      pytest tests/kernels -m aot                    every shipped configuration compiled, without a GPU

Triton reads the interpreter flag when it is imported, and a compiling process has a stand-in for the GPU's driver: both
are global state. In the wrong lane a test skips and says so.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aef.kernels import dispatch, runtime

LANES = {
    "interp": "real kernels on a CPU: TRITON_INTERPRET=1 pytest tests/kernels -m interp",
    "aot": "compiles kernels in a process of its own: pytest tests/kernels -m aot",
    "gpu": "needs a CUDA device",
}


def pytest_collection_modifyitems(config, items):
    problem = runtime.triton_problem()
    open_lanes = {
        "interp": runtime.INTERPRET and not problem,
        "aot": "aot" in config.option.markexpr.split() and not runtime.INTERPRET and not problem,
        "gpu": torch.cuda.is_available(),
    }
    for item in items:
        for lane, reason in LANES.items():
            if item.get_closest_marker(lane) and not open_lanes[lane]:
                item.add_marker(pytest.mark.skip(reason=problem or reason))


@pytest.fixture
def poisoned():
    """Fill freshly allocated tensors with NaN, so that an element that no kernel wrote cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=runtime.INTERPRET)
def within_arguments(monkeypatch):
    """An interpreted load or store lies, as far as its mask lets it through, within one tensor of its launch: the host's
    memory forgives what leads out of it, a GPU's need not."""
    from triton.runtime import interpreter

    launched, executor, builder = [], interpreter.GridExecutor, interpreter.InterpreterBuilder
    run = executor.__call__

    def remember(self, *arguments, **settings):
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        launched[:] = [(one.data_ptr(), one.data_ptr() + one.numel() * one.element_size()) for one in tensors]
        run(self, *arguments, **settings)

    def within(name, mask_at):
        access = getattr(builder, name)

        def checked(self, pointers, *arguments):
            mask = arguments[mask_at].data
            if mask.any():
                reached = pointers.data[mask]
                first, last = int(reached.min()), int(reached.max())
                end = last + pointers.get_element_ty().primitive_bitwidth // 8
                assert any(begin <= first and end <= beyond for begin, beyond in launched), (
                    f"{name} from {first:#x} to {end:#x}: expected to stay within one argument's memory, "
                    + ", ".join(f"{begin:#x} to {beyond:#x}" for begin, beyond in launched)
                )
            return access(self, pointers, *arguments)

        monkeypatch.setattr(builder, name, checked)

    monkeypatch.setattr(executor, "__call__", remember)
    within("create_masked_load", 0)
    within("create_masked_store", 1)


@pytest.fixture
def triton_kernels(monkeypatch, poisoned):
    """Public functions run the Triton kernels (the interpreter lane), into poisoned memory."""
    monkeypatch.setenv("AEF_KERNELS", "triton")


@pytest.fixture(params=["NVIDIA H200, bfloat16", "NVIDIA A100, bfloat16", "NVIDIA A100, float32"])
def shipped_tiles(request, monkeypatch):
    """Kernels take the tiles that are shipped for a GPU and a type: the interpreter has neither, and computes in fp32."""
    gpu, dtype = request.param.split(", ")
    monkeypatch.setattr(dispatch, "_gpu", lambda case: gpu)
    monkeypatch.setattr(dispatch, "_table_dtype", lambda case: dtype)
    monkeypatch.setattr(dispatch, "_choices", {})


def relative_error(found, wanted):
    """‖found − wanted‖ / ‖wanted‖, in fp64."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def as_tuple(outputs):
    """The outputs of an operator that may have one or several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture
def assert_agrees():
    """`assert_agrees(function, reference, leaves, rest=(), tolerance=1e-5)`: outputs and every gradient agree.

    `leaves` are the differentiable arguments (None where one is absent), `rest` the others. A function may have several
    outputs. Cotangents are not contiguous: kernels must cope.
    """

    def compare(function, reference, leaves, rest=(), tolerance=1e-5):
        present = [leaf for leaf in leaves if leaf is not None]
        wanted = as_tuple(reference(*leaves, *rest))
        cotangents = [torch.randn(*one.shape, 2, dtype=one.dtype)[..., 0] for one in wanted]
        expected = (*wanted, *torch.autograd.grad(wanted, present, cotangents))
        out = as_tuple(function(*leaves, *rest))
        found = (*out, *torch.autograd.grad(out, present, cotangents))
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            name = f"output {index}" if index < len(out) else f"gradient of argument {index - len(out)}"
            assert one.shape == other.shape, name
            assert one.dtype == other.dtype, name
            assert relative_error(one, other) <= tolerance, f"{name}: {relative_error(one, other):.1e}"

    return compare


class _Backwards(TorchDispatchMode):
    """Keeps what the operators of our backward passes were given and gave."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if function.namespace == "aef" and "backward" in function.name():
            self.seen.append((function, arguments, out))
        return out

    seen: list


@pytest.fixture
def assert_backward_has_its_fakes_layout():
    """`assert_backward_has_its_fakes_layout(operator, arguments)`: shapes, types and strides, as compiled graphs expect."""

    def check(operator, arguments):
        outputs = [out for out in as_tuple(operator(*arguments)) if out.requires_grad]
        leaves = [one for one in arguments if isinstance(one, torch.Tensor) and one.requires_grad]
        with _Backwards() as mode:
            mode.seen = []
            # Cotangents that are not contiguous: what a gradient is laid out like must not depend on them.
            cotangents = [torch.randn(*out.shape, 2, dtype=out.dtype)[..., 0] for out in outputs]
            torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
        for function, given, real in mode.seen:
            meta = [one.to("meta") if isinstance(one, torch.Tensor) else one for one in given]
            described = [
                [(out.shape, out.dtype, out.stride()) for out in as_tuple(found)] for found in (function(*meta), real)
            ]
            assert described[0] == described[1], function.name()
        return {function.name() for function, *_ in mode.seen}

    return check


@pytest.fixture
def assert_operator_is_sound():
    """`assert_operator_is_sound(operator, arguments)`: torch's own checks of schema, fake, autograd and AOT dispatch."""

    def check(operator, arguments):
        torch.library.opcheck(operator, arguments)

    return check
