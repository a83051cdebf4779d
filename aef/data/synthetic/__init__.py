"""A synthetic Earth worth learning from: fields, seasons, weather, clouds and sensors, with the truth known.

One latent scene per place (`landscape.Scene`) is seen by every source, so that sensors agree about the ground and
labels are exact. Properties and figures: docs/synthetic.md.
"""

from aef.data.synthetic.earth import (
    FIRST_YEAR,
    SOURCES,
    Earth,
    SyntheticError,
    generate,
    require_counts,
    write_earth,
)

__all__ = ["FIRST_YEAR", "SOURCES", "Earth", "SyntheticError", "generate", "require_counts", "write_earth"]
