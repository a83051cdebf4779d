"""From a trained model to embedding fields that people use."""

from .quantize import dequantize, quantize

__all__ = ["dequantize", "quantize"]
