"""Inputs that nobody would send, by the million: each module is a script (``python -m fuzz.framing``)."""
