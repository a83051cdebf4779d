"""LayerNorm over the channels of one pixel."""
