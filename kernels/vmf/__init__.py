"""Samples of the von Mises–Fisher distribution from counters, the same on every device."""
