"""One thin file per command; reachable as `python launcher/NAME.py` and `aef NAME`."""
