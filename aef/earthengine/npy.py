"""NPY answers from many threads.

NumPy parses an array's header with `ast.literal_eval`, which is not safe to run in several threads at once on CPython
3.11 (SystemError: AST constructor recursion depth mismatch). Headers of the form that NumPy itself writes are therefore
read here by that form; any other way to write one, and every chip that is read in a thread, takes its turn under
`PARSING`.
"""

from __future__ import annotations

import io
import re
import threading

import numpy as np

PARSING = threading.Lock()
LONGEST_HEADER = 2**20
"""A few hundred bands make a header longer than NumPy's default limit of 10,000 characters."""

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\s*\{'descr': \[(?P<fields>(?:\('[^']*', '[<>|=]?[a-z]\d+'\)(?:, )?)+)\], "
    r"'fortran_order': False, 'shape': \((?P<height>\d+), (?P<width>\d+)\),? *\}\s*"
)
_FIELD = re.compile(r"\('([^']*)', '([<>|=]?[biuf]\d+)'\)")


def read_npy(data: bytes) -> np.ndarray:
    """The structured array of an NPY body, (height, width) with a field per band, without a copy of its values.

    Raises:
        ValueError: the body is cut short, garbled or not an image of plain values.
    """
    if data[:6] != _MAGIC or len(data) < 12:
        raise ValueError("the answer is no NPY array")
    size_bytes = 2 if data[6] == 1 else 4
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    found = _HEADER.fullmatch(data[start:end].decode("latin-1"))
    if not found:
        return _read_slowly(data)
    dtype = np.dtype([(name, kind) for name, kind in _FIELD.findall(found["fields"])])
    shape = (int(found["height"]), int(found["width"]))
    expected = shape[0] * shape[1] * dtype.itemsize
    if len(data) - end != expected:
        raise ValueError(f"the answer holds {len(data) - end} bytes of pixels, expected {expected}")
    return np.frombuffer(data, dtype, shape[0] * shape[1], offset=end).reshape(shape)


def _read_slowly(data: bytes) -> np.ndarray:
    with PARSING:
        array = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=LONGEST_HEADER)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.dtype.names:
        raise ValueError("the answer is no image of named bands")
    return array
