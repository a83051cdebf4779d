"""Reading NPY answers from many threads.

NumPy parses an array's header with `ast.literal_eval`, which is not safe to run in several threads at once on CPython 3.11
(SystemError: AST constructor recursion depth mismatch). `PARSING` is held wherever this room reads NPY data.
"""

from __future__ import annotations

import io
import threading

import numpy as np

PARSING = threading.Lock()


def read_npy(data: bytes) -> np.ndarray:
    """The array of an NPY body, without a copy of its values.

    Raises:
        ValueError: the body is cut short, garbled or not an array of plain values.
    """
    stream = io.BytesIO(data)
    with PARSING:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        # A thousand bands make a header longer than NumPy's default limit; it holds literals only, whatever its length.
        shape, fortran, dtype = header(stream, max_header_size=2**20)
    count = int(np.prod(shape))
    if dtype.hasobject or fortran or len(data) - stream.tell() != count * dtype.itemsize:
        raise ValueError(
            f"expected {count * dtype.itemsize} bytes of {dtype.itemsize}-byte pixels, found {len(data) - stream.tell()}"
        )
    return np.frombuffer(data, dtype, count, offset=stream.tell()).reshape(shape)
