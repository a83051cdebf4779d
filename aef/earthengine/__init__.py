"""Earth Engine → chips: the paper's gridded sources at the paper's preprocessing, resumable and checked.

Read `download.py` first: sites → requests → parts → chips, with `manifest.py` as its memory. `recipes.py` holds what
is particular to a source, `expressions.py` turns it into Earth Engine graphs, `service.py` talks to the service within
its limits (`transport.py`) and knows what its refusals mean (`failures.py`), `decode.py` makes a chip's arrays of the
answers. Only `aef.stac` and the launchers import what is here.
"""

from aef.earthengine.upload import upload_manifest

__all__ = ["upload_manifest"]
