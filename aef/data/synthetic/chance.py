"""Random streams of a place, and rough fields: everything that is drawn is keyed by (seed, place, what it is for, draw)."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, place: int, purpose: str, draw: int = 0) -> np.random.Generator:
    """The same numbers for the same key, whichever worker asks and whatever else is rendered.

    Args:
        draw: of the whole place: 0, unless it had to be drawn again.
    """
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=4).digest(), "little")
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, place, key, draw))))


def rough_fields(rng: np.random.Generator, count: int, side: int, *, slope: float, longest: float = 1.0) -> np.ndarray:
    """Random fields with a power-law spectrum: (count, side, side) float32, each of mean 0 and variance 1.

    Args:
        slope: amplitude falls with wavenumber k as k ** -slope; 0 is white, 2 is smooth as hills.
        longest: longest wavelength in units of the side; longer waves are damped.
    """
    # A domain that is larger than the window hides the period of the Fourier series.
    domain = side + side // 2
    frequency = np.hypot(np.fft.fftfreq(domain)[:, None], np.fft.rfftfreq(domain)[None]) * side
    amplitude = np.maximum(frequency, 1 / longest) ** -slope
    amplitude[0, 0] = 0
    phase = rng.random((count, *amplitude.shape), dtype=np.float32) * np.float32(2 * np.pi)
    spectrum = np.empty(phase.shape, np.complex64)
    spectrum.real, spectrum.imag = np.cos(phase), np.sin(phase)
    spectrum *= amplitude.astype(np.float32)
    field = np.fft.irfft2(spectrum, s=(domain, domain))[:, :side, :side].astype(np.float32)
    field -= field.mean((1, 2), keepdims=True)
    field /= np.maximum(field.std((1, 2), keepdims=True), 1e-12)
    return field


def log_gamma_speckle_db(rng: np.random.Generator, shape: tuple[int, ...], looks: int) -> np.ndarray:
    """Multi-look speckle in decibels, unit mean in power: 10 log10 of a Gamma(looks) / looks variable, float32.

    The Gamma variable of an integer shape is minus the logarithm of a product of as many uniform numbers, which is
    several times faster to draw than a rejection sampler.
    """
    product = rng.random(shape, dtype=np.float32)
    np.subtract(1, product, out=product)
    factor = np.empty_like(product)
    for _ in range(looks - 1):
        rng.random(out=factor, dtype=np.float32)
        np.subtract(1, factor, out=factor)
        product *= factor
    power = -np.log(np.maximum(product, np.float32(1e-30)))
    return 10 * np.log10(np.maximum(power, 1e-4) / looks)


def white(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Uncorrelated noise of the given standard deviation, float32: the sum of two uniform numbers, which no statistic
    of a chip tells from a normal one and which costs a sixth of it."""
    noise = rng.random(shape, dtype=np.float32)
    noise += rng.random(shape, dtype=np.float32)
    noise -= 1
    noise *= np.float32(deviation * np.sqrt(6))
    return noise


def red_noise(rng: np.random.Generator, days: int, memory_days: float) -> np.ndarray:
    """First-order autoregressive series of unit variance: (days,) float64."""
    keep = np.exp(-1 / memory_days)
    steps = rng.standard_normal(days) * np.sqrt(1 - keep**2)
    steps[0] = rng.standard_normal()
    series = np.empty(days)
    level = 0.0
    for day, step in enumerate(steps):
        level = keep * level + step if day else step
        series[day] = level
    return series


def smooth_fields(rng: np.random.Generator, count: int, side: int, knots: int) -> np.ndarray:
    """Random fields without detail: normal numbers on a coarse lattice, bilinear between. (count, side, side) float32."""
    lattice = rng.standard_normal((count, knots, knots), dtype=np.float32)
    return enlarge(lattice, side) * np.float32(1.4)  # interpolation halves the variance


def enlarge(field: np.ndarray, side: int) -> np.ndarray:
    """Bilinear interpolation of (count, n, n), whose outer samples lie on the border, to (count, side, side)."""
    at = np.linspace(0, field.shape[-1] - 1, side)
    left = np.minimum(at.astype(int), field.shape[-1] - 2)
    weights = np.zeros((side, field.shape[-1]), np.float32)
    weights[np.arange(side), left] = 1 - (at - left)
    weights[np.arange(side), left + 1] = at - left
    return weights @ field @ weights.T
