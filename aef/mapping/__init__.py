"""From a trained model to embedding fields that people use: `trained_model` first.

Light on purpose: the int8 code needs NumPy only; `trained_model` brings torch, `files` rasterio and xarray.
"""

from aef.mapping.quantize import dequantize, quantize

__all__ = ["dequantize", "quantize"]
