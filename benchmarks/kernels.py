"""Single operators on any device: python -m benchmarks.kernels [--only NAME …] [--device cpu] [--dtype float32]

Each case is an operator at the shapes of a preset; its contenders do the same work from the same arguments, layout copies
and bookkeeping included: the naive reference, what PyTorch offers, and ours. On a CPU the contenders take turns, the
figure is process CPU time in one thread, and a run in which a calibration product swings by more than 15 % says so.
The same cases serve `python -m benchmarks.gpu` and `pytest benchmarks/test_kernels.py`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aef import kernels
from aef.kernels.activation.reference import bias_gelu_reference, bias_residual_reference, gelu_linear_reference
from aef.kernels.channel_norm.reference import EPS, channel_norm_reference, residual_norm_reference
from aef.kernels.exchange.reference import (
    exchange_down_reference,
    exchange_up_add_reference,
    exchange_up_norm_reference,
)
from aef.kernels.precision_conv.reference import conv3x3_reference
from aef.kernels.space_attention.library import attend_products, attend_sdpa
from aef.kernels.space_attention.library import attend_varlen as attend_varlen_pixels
from aef.kernels.space_attention.reference import space_attention_reference
from aef.kernels.temporal_pooling.library import pool_padded
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference
from aef.kernels.time_attention.library import attend_padded, attend_varlen, varlen_library
from aef.kernels.time_attention.reference import time_attention_reference
from aef.kernels.vmf.reference import sample_vmf_reference
from benchmarks import roofline

Arguments = tuple
Contender = Callable[..., Tensor | tuple[Tensor, ...]]
LARGEST_SWING = 0.15


@dataclass(frozen=True)
class Case:
    """An operator at one shape: its arguments (differentiable tensors first), contenders, and floors."""

    operator: str
    shape: str
    make: Callable[[torch.device, torch.dtype], Arguments]
    contenders: dict[str, Contender]
    work: roofline.Direction
    value: int = 1
    """How much a measurement is worth: rows of the GPU run go from the highest down."""

    @property
    def name(self) -> str:
        return f"{self.operator} {self.shape}"


def leaves(arguments: Arguments) -> list[Tensor]:
    """The arguments that get gradients."""
    return [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]


def as_outputs(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a contender returned; some have several outputs."""
    return found if isinstance(found, tuple) else (found,)


def cotangents_of(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Random gradients of the outputs."""
    return tuple(torch.randn_like(one) for one in outputs)


def offsets(lengths: list[int], device: torch.device) -> Tensor:
    """`cu_frames` of segments of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)


def _random(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()


# --- time attention --------------------------------------------------------------------------------------------------


def _attend_equal(backends: list[SDPBackend] | None) -> Contender:
    """SDPA over segments of one length, which need no mask: the copies to and from its layout are part of the price."""

    def attend(qkv: Tensor, table: Tensor, cu_frames: Tensor, longest: int) -> Tensor:
        segments = cu_frames.shape[0] - 1
        summed = (qkv + table[:, None]).unflatten(0, (segments, longest))  # (S, T, P, 3, H, D)
        query, key, value = summed.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (S·P, H, T, D)
        if backends is None:
            weights = (query @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1)
            out = weights @ value
        else:
            with sdpa_kernel(backends):
                out = F.scaled_dot_product_attention(query, key, value)
        return out.unflatten(0, (segments, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)

    return attend


def _attend_flex(qkv: Tensor, table: Tensor, cu_frames: Tensor, longest: int) -> Tensor:
    """FlexAttention on packed pixels: G sequences of T frames in one of G·T = 64, block-diagonal by a mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    segments, group = cu_frames.shape[0] - 1, max(1, 64 // longest)

    def same_pixel(batch, head, query, key):
        return query // longest == key // longest

    summed = (qkv + table[:, None]).unflatten(0, (segments, longest))
    packed = summed.permute(3, 0, 2, 1, 4, 5).flatten(1, 3).unflatten(1, (-1, group * longest)).transpose(2, 3)
    mask = create_block_mask(
        same_pixel, None, None, group * longest, group * longest, device=str(qkv.device), BLOCK_SIZE=64
    )
    out = flex_attention(*packed, block_mask=mask)
    return out.transpose(1, 2).flatten(0, 1).unflatten(0, (segments, -1, longest)).transpose(1, 2).flatten(0, 1)


def _attention(lengths: list[int], pixels: int, heads: int, channels: int, value: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        qkv = _random(sum(lengths), pixels, 3, heads, channels, device=device, dtype=dtype)
        table = _random(sum(lengths), 3, heads, channels, device=device, dtype=dtype)
        return qkv, table, offsets(lengths, device), max(lengths)

    equal = len(set(lengths)) == 1
    contenders: dict[str, Contender] = {"reference": time_attention_reference, "sdpa padded": attend_padded}
    if equal:
        contenders |= {
            "eager matmul": _attend_equal(None),
            "sdpa flash": _attend_equal([SDPBackend.FLASH_ATTENTION]),
            "sdpa efficient": _attend_equal([SDPBackend.EFFICIENT_ATTENTION]),
            "sdpa cudnn": _attend_equal([SDPBackend.CUDNN_ATTENTION]),
            "sdpa math": _attend_equal([SDPBackend.MATH]),
            "flex compiled": _attend_flex,
        }
    contenders |= {varlen_library()[0]: attend_varlen, "ours": kernels.time_attention}
    label = "+".join(map(str, lengths[:2] if len(set(lengths[:2])) == 2 else lengths[:1]))
    shape = f"T={label}, {len(lengths)} segments, {pixels}x{heads}x{channels}"
    work = roofline.time_attention(lengths, pixels, heads, channels)
    return Case("time_attention", shape, make, contenders, work, value)


# --- the other operators ---------------------------------------------------------------------------------------------


def _pool_matmul(states, table, query, bias, period_segment, cu_frames, longest):
    """One chain of products for all queries of one single segment (every period pools segment 0)."""
    x = (states + table[:, None])[:longest]
    logits = torch.einsum("tpc,qhc->pqht", x, query.to(x.dtype))
    return torch.einsum("pqht,tpc->qphc", logits.softmax(dim=-1), x)


def _pool_sdpa(states, table, query, bias, period_segment, cu_frames, longest):
    x = (states + table[:, None])[:longest].transpose(0, 1)  # (P, T, C)
    queries = query.to(x.dtype).flatten(0, 1).expand(x.shape[0], -1, -1)
    pooled = F.scaled_dot_product_attention(queries, x, x, scale=1.0)
    return pooled.unflatten(1, query.shape[:2]).permute(1, 0, 2, 3)


def _pooling(lengths: list[int], periods: list[int], pixels: int, heads: int, channels: int, value: int) -> Case:
    chosen = [segment for segment, count in enumerate(periods) for _ in range(count)]

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        return (
            _random(sum(lengths), pixels, channels, device=device, dtype=dtype),
            _random(sum(lengths), channels, device=device, dtype=dtype),
            _random(len(chosen), heads, channels, device=device, dtype=dtype, scale=channels**-0.5),
            None,
            torch.tensor(chosen, dtype=torch.int32, device=device),
            offsets(lengths, device),
            max(lengths),
        )

    contenders: dict[str, Contender] = {"reference": temporal_pooling_reference, "per period, padded": pool_padded}
    if len(lengths) == 1:
        contenders |= {"matmul chain": _pool_matmul, "sdpa all queries": _pool_sdpa}
    contenders["ours"] = kernels.temporal_pooling
    shape = f"T={'+'.join(map(str, lengths))}, {'+'.join(map(str, periods))} periods, {pixels}x{heads}x{channels}"
    work = roofline.temporal_pooling(lengths, periods, pixels, heads, channels)
    return Case("temporal_pooling", shape, make, contenders, work, value)


def _eager_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def _with_norm(state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return state, _eager_norm(state, weight, bias)


def _with_channel_norm(state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return state, kernels.channel_norm(state, weight, bias)


def _point_wise(operator: str, rows: int, channels: int, value: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        x, residual = (_random(rows, channels, device=device, dtype=dtype) for _ in range(2))
        weight, bias, added = (_random(channels, device=device, dtype=dtype) for _ in range(3))
        product = _random(-(-channels // 4), channels, device=device, dtype=dtype, scale=channels**-0.5)
        return {
            "channel_norm": (x, weight, bias),
            "residual_norm": (x, added, residual, weight, bias),
            "bias_gelu": (x, bias),
            "gelu_linear": (x, bias, product),
            "bias_residual": (x, bias, residual),
        }[operator]

    contenders: dict[str, dict[str, Contender]] = {
        "channel_norm": {"reference": channel_norm_reference, "eager": _eager_norm, "ours": kernels.channel_norm},
        "residual_norm": {
            "reference": residual_norm_reference,
            "eager": lambda x, added, residual, weight, bias: _with_norm(x + added + residual, weight, bias),
            "two operators": lambda x, added, residual, weight, bias: _with_channel_norm(
                kernels.bias_residual(x, added, residual), weight, bias
            ),
            "ours": kernels.residual_norm,
        },
        "bias_gelu": {
            "reference": bias_gelu_reference,
            "eager": lambda x, bias: F.gelu(x + bias),
            "ours": kernels.bias_gelu,
        },
        "gelu_linear": {
            "reference": gelu_linear_reference,
            "eager": lambda x, bias, weight: F.linear(F.gelu(x + bias), weight),
            "ours": kernels.gelu_linear,
        },
        "bias_residual": {
            "reference": bias_residual_reference,
            "eager": lambda x, bias, residual: x + bias + residual,
            "ours": kernels.bias_residual,
        },
    }
    work = getattr(roofline, operator)(rows, channels)
    return Case(operator, f"{rows}x{channels}", make, contenders[operator], work, value)


def _sampling(rows: int, value: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        mean = F.normalize(torch.randn(rows, 64, device=device), dim=1).requires_grad_()
        return mean, 8000.0, (0, 0), torch.arange(rows, device=device)

    contenders = {"reference": sample_vmf_reference, "ours": kernels.sample_vmf}
    return Case("sample_vmf", f"{rows}x64", make, contenders, roofline.sample_vmf(rows, 64), value)


# --- convolutions, the exchange, space attention ---------------------------------------------------------------------


def _precision(frames: int, side: int, channels: int, value: int) -> Case:
    """The whole precision operator: x + conv(GELU(conv(LN(x)))). `AEF_KERNELS=triton` times the other of its two ways."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        def vector() -> Tensor:
            return _random(channels, device=device, dtype=dtype)

        def kernel() -> Tensor:
            return _random(channels, 3, 3, channels, device=device, dtype=dtype, scale=(9 * channels) ** -0.5)

        x = _random(frames, side, side, channels, device=device, dtype=dtype)
        return x, vector(), vector(), kernel(), vector(), kernel(), vector()

    def reference(x, scale, shift, first, first_bias, last, last_bias):
        inner = conv3x3_reference(channel_norm_reference(x, scale, shift), first, first_bias, True)
        return conv3x3_reference(inner, last, last_bias, False, x)

    def eager(x, scale, shift, first, first_bias, last, last_bias):
        image = F.layer_norm(x, x.shape[-1:], scale, shift, EPS).permute(0, 3, 1, 2)
        inner = F.gelu(F.conv2d(image, first.permute(0, 3, 1, 2), first_bias, padding=1))
        return x + F.conv2d(inner, last.permute(0, 3, 1, 2), last_bias, padding=1).permute(0, 2, 3, 1)

    def ours(x, scale, shift, first, first_bias, last, last_bias):
        inner = kernels.conv3x3_gelu(kernels.channel_norm(x, scale, shift), first, first_bias)
        return kernels.conv3x3(inner, last, last_bias, residual=x)

    contenders: dict[str, Contender] = {"reference": reference, "eager": eager, "ours": ours}
    work = roofline.precision_operator(frames, side, channels)
    return Case("precision_operator", f"{frames}x{side}x{side}x{channels}", make, contenders, work, value)


def _exchange(operator: str, frames: int, side: int, fine: int, coarse: int, kernel: int, value: int) -> Case:
    """One step between a level of `side`² pixels and the next coarser; upwards it is merged into the finer state, of which
    `exchange_up_norm` gives the LayerNorm too."""
    upwards, normed = operator != "exchange_down", operator == "exchange_up_norm"

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        states = _random(frames, side, side, fine, device=device, dtype=dtype)
        scale = (kernel**2 * (coarse if upwards else fine)) ** -0.5
        weight = _random(coarse, kernel, kernel, fine, device=device, dtype=dtype, scale=scale)
        bias = _random(fine if upwards else coarse, device=device, dtype=dtype)
        if not upwards:
            return states, weight, bias
        norm = [_random(fine, device=device, dtype=dtype) for _ in range(2)] if normed else []
        return _random(frames, side // 2, side // 2, coarse, device=device, dtype=dtype), weight, bias, states, *norm

    # PyTorch's own convolution on channels-last views is the reference as well as the best stock rung.
    contenders: dict[str, dict[str, Contender]] = {
        "exchange_down": {
            "reference": exchange_down_reference,
            "eager": exchange_down_reference,
            "ours": kernels.exchange_down,
        },
        "exchange_up": {
            "reference": exchange_up_add_reference,
            "eager": exchange_up_add_reference,
            "ours": kernels.exchange_up_add,
        },
        "exchange_up_norm": {
            "reference": exchange_up_norm_reference,
            "eager": lambda *a: _with_norm(exchange_up_add_reference(*a[:4]), *a[4:]),
            "two operators": lambda *a: _with_channel_norm(kernels.exchange_up_add(*a[:4]), *a[4:]),
            "ours": kernels.exchange_up_norm,
        },
    }
    shape = f"{frames}x{side}x{side}, {fine}-{coarse}, {kernel}x{kernel}"
    work = (roofline.exchange_up_norm if normed else roofline.exchange)(frames, side, fine, coarse, kernel)
    return Case(operator, shape, make, contenders[operator], work, value)


def _space(frames: int, pixels: int, heads: int, channels: int, value: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        return (_random(frames, pixels, 3, heads, channels, device=device, dtype=dtype),)

    contenders: dict[str, Contender] = {
        "reference": space_attention_reference,
        "eager matmul": attend_products,
        "sdpa": attend_sdpa,
        varlen_library()[0]: attend_varlen_pixels,
        "ours": kernels.space_attention,
    }
    work = roofline.space_attention(frames, pixels, heads, channels)
    return Case("space_attention", f"{frames}x{pixels}x{heads}x{channels}", make, contenders, work, value)


def cases(size: str) -> Iterator[Case]:
    """The shapes of presets that a CPU trains ("small") or of the paper ("large")."""
    if size == "large":
        for length, value in ((32, 9), (16, 8), (64, 8)):
            yield _attention([length] * 8, 256, 8, 64, value)
        yield _attention([103, 47] * 4, 256, 8, 64, 7)
        yield _attention([32], 256, 8, 64, 4)
        yield _pooling([103], [10], 4096, 8, 128, 6)
        yield _pooling([32], [10], 4096, 8, 128, 5)
        yield _pooling([103, 47], [10, 1], 4096, 8, 128, 4)
        yield _point_wise("gelu_linear", 64 * 256, 2048, 5)
        for operator in ("channel_norm", "residual_norm", "bias_gelu", "bias_residual"):
            yield _point_wise(operator, 64 * 4096, 128, 5)
            yield _point_wise(operator, 64 * 256, 2048 if operator == "bias_gelu" else 512, 4)
        for frames, value in ((64, 9), (256, 7), (128, 5), (32, 5)):
            yield _precision(frames, 64, 128, value)
        for operator in ("exchange_down", "exchange_up"):
            for side, fine, coarse in ((64, 128, 256), (32, 256, 512), (16, 512, 1024)):
                yield _exchange(operator, 64, side, fine, coarse, 3, 6)
        for kernel, value in ((3, 7), (2, 5)):
            yield _exchange("exchange_up_norm", 64, 64, 128, 256, kernel, value)
        yield _space(150, 64, 16, 64, 4)
        yield _sampling(11 * 16384, 3)
        return
    yield _attention([10, 5], 4, 2, 16, 1)
    yield _attention([62, 29, 60, 31, 55, 22, 61, 40], 4, 2, 32, 1)
    yield _attention([16, 7], 64, 4, 64, 1)
    yield _attention([103, 47], 64, 4, 64, 1)
    yield _pooling([62, 29], [5, 1], 64, 4, 48, 1)
    yield _pooling([16, 7], [2, 1], 1024, 8, 64, 1)
    for operator in ("channel_norm", "residual_norm", "bias_gelu", "bias_residual"):
        yield _point_wise(operator, 23040, 48, 1)
        yield _point_wise(operator, 1440, 256, 1)
    yield _point_wise("gelu_linear", 1440, 256, 1)
    yield _precision(64, 8, 32, 1)
    for operator in ("exchange_down", "exchange_up", "exchange_up_norm"):
        yield _exchange(operator, 64, 8, 32, 64, 3, 1)
    yield _space(350, 1, 2, 32, 1)
    yield _space(23, 16, 8, 64, 1)
    yield _sampling(7680, 1)


def run(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...] | None) -> None:
    """One forward, and one backward if cotangents are given."""
    if cotangents is None:
        with torch.no_grad():
            contender(*arguments)
    else:
        torch.autograd.grad(as_outputs(contender(*arguments)), leaves(arguments), cotangents)


def time_on_cpu(case: Case, dtype: torch.dtype, repeats: int) -> dict[tuple[str, str], float]:
    """Median CPU seconds of each contender that runs, by turns: {(contender, "forward" | "both"): s}."""
    arguments = case.make(torch.device("cpu"), dtype)
    cotangents = cotangents_of(as_outputs(case.contenders["ours"](*arguments)))
    times: dict[tuple[str, str], list[float]] = {}
    usable = {name: one for name, one in case.contenders.items() if _runs(one, arguments, cotangents)}
    for _ in range(repeats):
        for name, contender in usable.items():
            for mode, one in (("forward", None), ("both", cotangents)):
                begin = time.process_time()
                run(contender, arguments, one)
                times.setdefault((name, mode), []).append(time.process_time() - begin)
    return {key: statistics.median(found) for key, found in times.items()}


def _runs(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...]) -> bool:
    try:
        run(contender, arguments, cotangents)
    except (RuntimeError, NotImplementedError):  # no such backend on this device
        return False
    return True


def _calibrate() -> float:
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(5):
        begin = time.process_time()
        a @ a
        times.append(time.process_time() - begin)
    return min(times)


def operators(preset: str) -> list[str]:
    """The operators that `cases` times."""
    return sorted({case.operator for case in cases(preset)})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of {', '.join(operators('small'))}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (which runs benchmarks.gpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)
    if options.device != "cpu":
        from benchmarks import gpu

        return gpu.main(["--only", *options.only] if options.only else [])
    unknown = sorted(set(options.only or ()) - set(operators("small")))
    if unknown:
        parser.error(f"--only: unknown operator {', '.join(unknown)}: expected some of {', '.join(operators('small'))}")
    torch.set_num_threads(1)
    before = _calibrate()
    print(f"{'case':58s} {'contender':20s} {'forward ms':>11s} {'both ms':>9s}")
    for case in cases("small"):
        if options.only and case.operator not in options.only:
            continue
        times = time_on_cpu(case, getattr(torch, options.dtype), options.repeats)
        for name in dict.fromkeys(one for one, _ in times):
            print(f"{case.name:58s} {name:20s} {times[name, 'forward'] * 1e3:11.2f} {times[name, 'both'] * 1e3:9.2f}")
    swing = abs(_calibrate() / before - 1)
    print(
        f"one thread, process CPU time, torch {torch.__version__}; 1024³ product {before * 1e3:.1f} ms, swing {swing:.0%}"
    )
    if swing > LARGEST_SWING:
        print("the clock swung too far: discard this run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
