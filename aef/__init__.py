"""AlphaEarth Foundations, trainable: satellite time series in, one 64-d unit vector per 10 m pixel and period out.

Importing `aef` is light on purpose: it loads neither torch nor geospatial libraries.
"""

__version__ = "0.1.0"
