"""Without Earth Engine: chips from a STAC catalogue, through pystac-client and odc-stac (extra ``[stac]``).

`products.py` says which collection is which source and what its numbers mean; `fetch.py` searches, reads and hands over
the same series that Earth Engine would, under collection ids of their own (``stac:sentinel-2-l2a``), so that statistics
of different products are never mixed.
"""
