"""Floors of every operator: python -m benchmarks.roofline [--gpu h200]

The least time that an operator can take is its operations at the chip's matrix rate or its bytes at the copy rate,
whichever is more. Bytes count each tensor that must cross memory once; operations count a multiply-add as two.
"""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What a chip can do: bf16 matrix products in FLOP/s, copies (read + write) in bytes/s, datasheet peak in FLOP/s."""

    matrix: float
    copy: float
    datasheet: float


GPUS = {
    "h200": Gpu(
        matrix=790e12, copy=4.3e12, datasheet=989e12
    ),  # measured on one H200: large bf16 products, large copies
    "h100": Gpu(matrix=700e12, copy=2.9e12, datasheet=989e12),  # estimated from the datasheet
    "a100": Gpu(matrix=260e12, copy=1.7e12, datasheet=312e12),  # estimated from the datasheet
}


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one direction of an operator."""

    flops: float
    bytes: float

    def floor_s(self, gpu: Gpu) -> float:
        """Seconds below which no implementation can go."""
        return max(self.flops / gpu.matrix, self.bytes / gpu.copy)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


Direction = dict[str, Work]


def _both(forward: Work, backward: Work) -> Direction:
    return {"forward": forward, "backward": backward, "both": forward + backward}


def time_attention(lengths: list[int], pixels: int, heads: int, channels: int, itemsize: int = 2) -> Direction:
    """Forward reads q, k, v and writes out; backward reads q, k, v, dO and writes three gradients."""
    scores = sum(length**2 for length in lengths) * pixels * heads * channels
    tensor = sum(lengths) * pixels * heads * channels * itemsize
    return _both(Work(4 * scores, 4 * tensor), Work(10 * scores, 7 * tensor))


def temporal_pooling(
    lengths: list[int], periods: list[int], pixels: int, heads: int, channels: int, itemsize: int = 2
) -> Direction:
    """`periods[s]` of segment s. Forward reads the states once and writes out; backward reads both and writes dx."""
    products = sum(t * q for t, q in zip(lengths, periods)) * pixels * heads * channels
    states = sum(lengths) * pixels * channels * itemsize
    out = sum(periods) * pixels * heads * channels * itemsize
    return _both(Work(4 * products, states + out), Work(10 * products, 2 * states + out))


def channel_norm(rows: int, channels: int, itemsize: int = 2) -> Direction:
    """Forward reads and writes x; backward reads x and dy and writes dx."""
    tensor = rows * channels * itemsize
    return _both(Work(0, 2 * tensor), Work(0, 3 * tensor))


def bias_gelu(rows: int, channels: int, itemsize: int = 2) -> Direction:
    """As `channel_norm`."""
    return channel_norm(rows, channels, itemsize)


def gelu_linear(rows: int, channels: int, itemsize: int = 2) -> Direction:
    """`bias_gelu` and a product to a quarter of the channels; backward writes the GELU's output once more."""
    flops, tensor = 2 * rows * channels * -(-channels // 4), rows * channels * itemsize
    narrow = rows * -(-channels // 4) * itemsize
    # GELU: read and write; product: read, write. Backward: dy twice, the slope's three passes and its output, read again.
    return _both(Work(flops, 3 * tensor + narrow), Work(2 * flops, 6 * tensor + 2 * narrow))


def bias_residual(rows: int, channels: int, itemsize: int = 2) -> Direction:
    """Forward reads two tensors and writes one; backward reads dy for the bias's sum."""
    tensor = rows * channels * itemsize
    return _both(Work(0, 3 * tensor), Work(0, tensor))


def residual_norm(rows: int, channels: int, itemsize: int = 2) -> Direction:
    """Forward reads branch and residual, writes state and norm; backward reads both gradients and the state, writes one."""
    tensor = rows * channels * itemsize
    return _both(Work(0, 4 * tensor), Work(0, 4 * tensor))


def sample_vmf(rows: int, dimension: int, itemsize: int = 4) -> Direction:
    """Forward reads the mean and writes the sample; backward reads mean and gradient and writes one."""
    tensor = rows * dimension * itemsize
    return _both(Work(0, 2 * tensor), Work(0, 3 * tensor))


def conv3x3(frames: int, side: int, channels: int, itemsize: int = 2) -> Direction:
    """Forward reads x and writes y; backward takes a data and a weight gradient of the same operations."""
    pixels = frames * side * side
    flops, tensor = 18 * channels**2 * pixels, pixels * channels * itemsize
    return _both(Work(flops, 2 * tensor), Work(2 * flops, 4 * tensor))


def precision_operator(frames: int, side: int, channels: int, itemsize: int = 2) -> Direction:
    """Two convolutions; every pass that the plan leaves: LayerNorm, and each convolution with its epilogue."""
    conv, norm = (
        conv3x3(frames, side, channels, itemsize),
        channel_norm(frames * side * side, channels, itemsize),
    )
    residual = Work(0, frames * side * side * channels * itemsize)
    return _both(
        conv["forward"] + conv["forward"] + norm["forward"] + residual,
        conv["backward"] + conv["backward"] + norm["backward"] + residual,
    )


def space_attention(frames: int, pixels: int, heads: int, channels: int, itemsize: int = 2) -> Direction:
    """As `time_attention`, every frame a segment of its pixels."""
    return time_attention([pixels] * frames, 1, heads, channels, itemsize)


def block(
    lengths: list[int], side: int, widths: tuple[int, int, int, int], head: int, mlp: int, kernel: int = 3
) -> Direction:
    """One STP block: `widths` at `side`, side/2, side/4 and side/8. Bytes: each state read and written once."""
    frames, (half, _, eighth, sixteenth) = sum(lengths), widths
    time, space = (side // 4) ** 2, (side // 8) ** 2
    flops = 2 * conv3x3(frames, side, half)["forward"].flops
    flops += 2 * (4 + 2 * mlp) * frames * (time * eighth**2 + space * sixteenth**2)
    flops += time_attention(lengths, time, eighth // head, head)["forward"].flops
    flops += space_attention(frames, space, sixteenth // head, head)["forward"].flops
    flops += whole_exchange(frames, side, widths, kernel)["forward"].flops
    states = 2 * frames * (side**2 * half + time * eighth + space * sixteenth)
    return _both(Work(flops, 2 * states), Work(2 * flops, 3 * states))


def exchange(frames: int, side: int, fine: int, coarse: int, kernel: int = 3, itemsize: int = 2) -> Direction:
    """One step between a level of `side`² pixels and `fine` channels and the next coarser, in either direction."""
    flops = 2 * frames * (side // 2) ** 2 * kernel**2 * fine * coarse
    tensors = frames * side * side * (fine + coarse / 4) * itemsize
    return _both(Work(flops, tensors), Work(2 * flops, 2 * tensors))


def exchange_up_norm(frames: int, side: int, fine: int, coarse: int, kernel: int = 3, itemsize: int = 2) -> Direction:
    """Forward reads the coarse and the fine state and writes the merged one and its norm; backward reads their
    gradients, the merged and the coarse state, and writes the gradients of the fine and the coarse one."""
    flops = exchange(frames, side, fine, coarse, kernel, itemsize)["forward"].flops
    state, coarser = frames * side**2 * fine * itemsize, frames * (side // 2) ** 2 * coarse * itemsize
    return _both(Work(flops, 3 * state + coarser), Work(2 * flops, 4 * state + 2 * coarser))


def whole_exchange(frames: int, side: int, widths: tuple[int, int, int, int], kernel: int = 3) -> Direction:
    """All six steps of a block's exchange. Bytes: the three states and the norm once; what lies between them is not counted."""
    half, quarter, eighth, sixteenth = widths
    levels = ((side, half, quarter), (side // 2, quarter, eighth), (side // 4, eighth, sixteenth))
    flops = sum(2 * exchange(frames, *level, kernel)["forward"].flops for level in levels)
    precision = 2 * frames * side**2 * half
    states = precision + 2 * frames * ((side // 4) ** 2 * eighth + (side // 8) ** 2 * sixteenth)
    return _both(Work(flops, 2 * states + precision), Work(2 * flops, 3 * states + precision))


def decoders(channels: list[int], pixels: int, dim: int, width: int) -> Direction:
    """A target of each of `channels` bands, decoded from fp32 embeddings through two hidden layers, with its error.
    Forward reads embedding, target and weight; backward reads them again and writes the embedding's gradient. No hidden
    layer and no prediction crosses memory."""
    flops = sum(2 * pixels * width * (dim + width + bands) for bands in channels)
    embeddings = 4 * len(channels) * pixels * dim
    seen = sum(4 * pixels * (bands + 1) for bands in channels)
    return _both(Work(flops, embeddings + seen), Work(2 * flops, 2 * embeddings + seen))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h200")
    gpu = GPUS[parser.parse_args(argv).gpu]
    rows = {
        **{f"time_attention T={t}, B=8": time_attention([t] * 8, 256, 8, 64) for t in (16, 32, 64)},
        "time_attention 103+47, B=8": time_attention([103, 47] * 8, 256, 8, 64),
        "temporal_pooling 103+47, 10+1 periods": temporal_pooling([103, 47], [10, 1], 4096, 8, 128),
        "channel_norm 128 at 64², 32 frames": channel_norm(32 * 4096, 128),
        "residual_norm 128 at 64², 32 frames": residual_norm(32 * 4096, 128),
        "bias_gelu 2048 at 16², 32 frames": bias_gelu(32 * 256, 2048),
        "bias_residual 512 at 16², 32 frames": bias_residual(32 * 256, 512),
        "sample_vmf 11 targets of 128²": sample_vmf(11 * 16384, 64),
        "conv3x3 128 at 64², 32 frames": conv3x3(32, 64, 128),
        "precision operator 128 at 64², 32 frames": precision_operator(32, 64, 128),
        "space_attention 64 pixels, 32 frames": space_attention(32, 64, 16, 64),
        "exchange 128–256 at 64², 32 frames": exchange(32, 64, 128, 256),
        "… merged upwards, with the norm": exchange_up_norm(32, 64, 128, 256),
        "decoders of 9 targets with their losses": decoders([5, 5, 7, 3, 5, 101, 12, 1, 16], 128**2, 64, 512),
        "block of the paper's widths, 43+21 frames": block([43, 21], 64, (128, 256, 512, 1024), 64, 4),
    }
    print(f"{'operator':40s} {'forward µs':>11s} {'backward µs':>12s} {'FLOP/byte':>10s}")
    for name, work in rows.items():
        forward, backward = (work[one].floor_s(gpu) * 1e6 for one in ("forward", "backward"))
        print(f"{name:40s} {forward:11.1f} {backward:12.1f} {work['forward'].flops / work['forward'].bytes:10.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
