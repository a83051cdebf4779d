"""Times and periods: int64 epoch milliseconds until the moment a difference is encoded.

Raw epoch milliseconds do not fit a float32 (24 bits of mantissa: steps of 131 s in 2024), so every difference is taken
and wrapped in integers and only the wrapped phase becomes a float.

Paper: each frame is conditioned on the sinusoidal encoding of its timestamp, the summary on that of the valid period
[t_s, t_e), the decoder on the target time normalised to [0, 1) within the period (section 2 and S2.2). Frequencies are
not stated; ours are below. Time is relative to the support start **plus** an absolute annual phase, because the support
year starts anywhere in the calendar while phenology does not.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from aef.clock import DAY_MS, SUPPORT_MS, YEAR_MS, Period, format_time, parse_period, parse_time

__all__ = [
    "ANNUAL_HARMONICS",
    "BELOW_ONE",
    "DAY_MS",
    "PERIOD_CODE_WIDTH",
    "RELATIVE_PERIODS_MS",
    "SUPPORT_MS",
    "TIMECODE_WIDTH",
    "UNIT_CODE_WIDTH",
    "UNIT_OCTAVES",
    "YEAR_MS",
    "Period",
    "encode_period",
    "encode_time",
    "encode_unit",
    "format_time",
    "parse_period",
    "parse_time",
    "position_in_period",
]

RELATIVE_PERIODS_MS = (*(round(DAY_MS * 365.2425 * 2.0**-k) for k in range(-3, 9)), DAY_MS)
"""Wavelengths of the relative code: 8 years down to 1.4 days in octaves (one of them is the year), and one day."""

ANNUAL_HARMONICS = (1, 2)

TIMECODE_WIDTH = 2 * len(RELATIVE_PERIODS_MS) + 2 * len(ANNUAL_HARMONICS)
PERIOD_CODE_WIDTH = 2 * TIMECODE_WIDTH
UNIT_OCTAVES = 8
BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""
UNIT_CODE_WIDTH = 2 * UNIT_OCTAVES


# Copying constants to the device at every step would stall it.
@lru_cache(maxsize=32)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """RELATIVE_PERIODS_MS (int64) and ANNUAL_HARMONICS (float64) on a device."""
    return (
        torch.tensor(RELATIVE_PERIODS_MS, device=device),
        torch.tensor(ANNUAL_HARMONICS, dtype=torch.float64, device=device),
    )


def _sinusoids(phase: Tensor) -> Tensor:
    """Phases in turns (..., K), float64 → sines and cosines (..., 2K), float32."""
    angle = phase * (2 * math.pi)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()


def encode_time(time_ms: Tensor, support_start_ms: Tensor) -> Tensor:
    """Timecode of each time, relative to its support start, plus the absolute annual phase.

    Args:
        time_ms: (...,) int64.
        support_start_ms: int64, broadcastable to ``time_ms``.

    Returns:
        (..., TIMECODE_WIDTH) float32.

    Raises:
        ValueError: a time is not int64.
    """
    if time_ms.dtype != torch.int64 or support_start_ms.dtype != torch.int64:
        raise ValueError(f"times must be int64 milliseconds, found {time_ms.dtype} and {support_start_ms.dtype}")
    periods, harmonics = _constants(time_ms.device)
    elapsed = (time_ms - support_start_ms).unsqueeze(-1)
    relative = torch.remainder(elapsed, periods).double() / periods.double()
    year = torch.remainder(time_ms, YEAR_MS).unsqueeze(-1).double() / YEAR_MS
    annual = year * harmonics
    return torch.cat((_sinusoids(relative), _sinusoids(annual)), dim=-1)


def encode_period(periods: Tensor, support_start_ms: Tensor) -> Tensor:
    """Code of valid periods: code(t_s) ⊕ code(t_e). (Q, 2) int64, (Q,) int64 → (Q, PERIOD_CODE_WIDTH) float32."""
    return encode_time(periods, support_start_ms.unsqueeze(-1)).flatten(-2)


def position_in_period(time_ms: Tensor, periods: Tensor) -> Tensor:
    """(t − t_s) / (t_e − t_s) as float32, exact in integers up to the division; in [0, 1) for a contained time."""
    start, end = periods.unbind(-1)
    position = ((time_ms - start).double() / (end - start).double()).float()
    # The last milliseconds of a year would round up to 1.
    return torch.where(time_ms < end, position.clamp(max=BELOW_ONE), position)


def encode_unit(position: Tensor) -> Tensor:
    """Sinusoidal code of a position in [0, 1): sin, cos of π 2^k x for k = 0…7. (...,) → (..., UNIT_CODE_WIDTH)."""
    octaves = 2.0 ** torch.arange(UNIT_OCTAVES, dtype=torch.float64, device=position.device)
    return _sinusoids(position.double().unsqueeze(-1) * octaves / 2)
