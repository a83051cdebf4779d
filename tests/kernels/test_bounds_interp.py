"""The interpreter lane refuses what a GPU might fault on or answer with garbage: reads and writes beyond an argument."""

import pytest
import torch

from aef.kernels.runtime import jit, tl

pytestmark = pytest.mark.interp
ROWS = 10


@jit
def copy_rows(x, out, loaded, stored, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    tl.store(out + row, tl.load(x + row, mask=row < loaded, other=0.0), mask=row < stored)


@pytest.mark.parametrize(
    ("loaded", "stored", "named"),
    [(ROWS, ROWS, None), (ROWS + 1, ROWS, "create_masked_load"), (ROWS, ROWS + 1, "create_masked_store")],
)
def test_an_access_beyond_its_tensor_is_an_error_though_its_memory_is_there(loaded, stored, named):
    whole = torch.zeros(2, 2 * ROWS)
    x, out = whole[0, :ROWS].copy_(torch.arange(ROWS)), whole[1, :ROWS]
    if named is None:
        copy_rows[(1,)](x, out, loaded, stored, BLOCK=16)
        assert torch.equal(x, out)
    else:
        with pytest.raises(Exception, match=f"{named} from .* within one argument's memory"):
            copy_rows[(1,)](x, out, loaded, stored, BLOCK=16)
