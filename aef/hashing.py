"""A hash that every machine and every process agrees on: it keys random draws and shares work."""

from __future__ import annotations

import hashlib

HASH_BITS = 40
"""Bits of a sample's hash in a vMF counter, hash << 23 | slot * pixels + pixel: 128 targets of 256 x 256 px fit."""


def stable_hash(text: str, bits: int = HASH_BITS) -> int:
    """The same non-negative integer for the same text, on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> (64 - bits)
