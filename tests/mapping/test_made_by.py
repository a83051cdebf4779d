"""Whether two fields compare: what made them."""

from aef.mapping.made_by import MadeBy
from aef.timecode import DAY_MS, Period


def test_fields_of_another_support_or_with_inpainted_pixels_are_told_apart():
    made_by, support = MadeBy("small@20", "0" * 64), Period(0, 365 * DAY_MS)
    tags = {**made_by.tags, "support": str(support)}
    assert made_by.difference(tags, support) is None and made_by.difference(tags) is None
    other = Period(DAY_MS, 366 * DAY_MS)
    assert made_by.difference(tags, other) == f"expected the support {other}, found {support}"
    assert made_by.difference(made_by.tags, support) == f"expected the support {support}, found none stated"
    inpainted = MadeBy("small@20", "0" * 64, inpainted=True)
    assert inpainted.difference(tags, support) == "expected unobserved pixels to be inpainted, found no data"
