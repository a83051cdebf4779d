"""Attention over the pixels of each frame."""
