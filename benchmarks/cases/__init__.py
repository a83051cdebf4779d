"""The operators at the shapes of presets, each against its contenders: what `python -m benchmarks.kernels` and
`python -m benchmarks.gpu` time."""

from collections.abc import Iterator

from .attention import space_attention, time_attention
from .case import Case
from .convolutions import conv3x3, exchange, precision_operator
from .pointwise import point_wise, sampling
from .pooling import temporal_pooling

POINT_WISE = ("channel_norm", "residual_norm", "bias_gelu", "bias_residual")


def cases(size: str) -> Iterator[Case]:
    """The shapes of presets that a CPU trains ("small") or of the paper ("large")."""
    yield from _small() if size == "small" else _large()


def operators(size: str) -> list[str]:
    """The operators that `cases` times."""
    return sorted({case.operator for case in cases(size)})


def fp32_cases() -> Iterator[Case]:
    """Cheap shapes of the operators whose kernels have tiles of their own for fp32: `small` and the tests run it on a GPU."""
    yield time_attention([103, 47], 8, 2, 64, 1)
    yield temporal_pooling([62, 29], [5, 1], 64, 4, 48, 1)
    yield temporal_pooling([62, 29], [5, 1], 64, 4, 48, 1, biased=True)
    yield precision_operator(8, 16, 64, 1)
    for operator in ("exchange_down", "exchange_up", "exchange_up_norm"):
        yield exchange(operator, 8, 16, 64, 128, 3, 1)


def _large() -> Iterator[Case]:
    for length, value in ((32, 9), (16, 8), (64, 8)):
        yield time_attention([length] * 8, 256, 8, 64, value)
    yield time_attention([103, 47] * 4, 256, 8, 64, 7)
    yield time_attention([32], 256, 8, 64, 4)
    yield time_attention([200, 90] * 2, 256, 8, 64, 4)
    yield time_attention([400, 180], 256, 8, 64, 3)
    yield temporal_pooling([103], [10], 4096, 8, 128, 6)
    yield temporal_pooling([32], [10], 4096, 8, 128, 5)
    yield temporal_pooling([103, 47], [10, 1], 4096, 8, 128, 4)
    yield temporal_pooling([103, 47], [10, 1], 4096, 8, 128, 5, biased=True)
    yield temporal_pooling([400], [10], 4096, 8, 128, 3)
    yield point_wise("gelu_linear", 64 * 256, 2048, 5)
    for operator in POINT_WISE:
        yield point_wise(operator, 64 * 4096, 128, 5)
        yield point_wise(operator, 64 * 256, 2048 if operator == "bias_gelu" else 512, 4)
    for frames, value in ((64, 9), (256, 7), (128, 5), (32, 5)):
        yield precision_operator(frames, 64, 128, value)
    for frames in (64, 256):
        yield conv3x3(frames, 64, 128, 6)
    for operator in ("exchange_down", "exchange_up"):
        for side, fine, coarse in ((64, 128, 256), (32, 256, 512), (16, 512, 1024)):
            yield exchange(operator, 256, side, fine, coarse, 3, 6)
    for kernel, value in ((3, 7), (2, 4)):
        yield exchange("exchange_up_norm", 256, 64, 128, 256, kernel, value)
    yield space_attention(150, 64, 16, 64, 4)
    yield sampling(11 * 16384, 3)


def _small() -> Iterator[Case]:
    yield time_attention([10, 5], 4, 2, 16, 1)
    yield time_attention([62, 29, 60, 31, 55, 22, 61, 40], 4, 2, 32, 1)
    yield time_attention([16, 7], 64, 4, 64, 1)
    yield time_attention([103, 47], 64, 4, 64, 1)
    yield temporal_pooling([62, 29], [5, 1], 64, 4, 48, 1)
    yield temporal_pooling([16, 7], [2, 1], 1024, 8, 64, 1)
    yield temporal_pooling([16, 7], [2, 1], 256, 4, 64, 1, biased=True)
    for operator in POINT_WISE:
        yield point_wise(operator, 23040, 48, 1)
        yield point_wise(operator, 1440, 256, 1)
    yield point_wise("gelu_linear", 1440, 256, 1)
    yield precision_operator(64, 8, 32, 1)
    yield conv3x3(64, 8, 32, 1)
    for operator in ("exchange_down", "exchange_up", "exchange_up_norm"):
        yield exchange(operator, 64, 8, 32, 64, 3, 1)
    yield space_attention(350, 1, 2, 32, 1)
    yield space_attention(23, 16, 8, 64, 1)
    yield sampling(7680, 1)
