"""From a trained model to embedding fields that people use.

Light on purpose: the int8 code needs NumPy only; `trained` brings torch, `files` rasterio and xarray.
"""

from .quantize import dequantize, quantize

__all__ = ["dequantize", "quantize"]
