"""A local stand-in for the Earth Engine REST service: the real client library talks to it over loopback HTTP.

`world.py` makes up images anywhere on Earth from their ids alone, `graph.py` interprets the graphs that arrive,
`server.py` speaks the wire format and misbehaves on demand. Run it as a program with ``python
tests/earthengine/standin``.
"""
