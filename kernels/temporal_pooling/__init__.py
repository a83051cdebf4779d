"""Temporal attention pooling: one summary per valid period and pixel, all periods of a segment at once."""
