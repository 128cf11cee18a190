"""Pools for hours rather than seconds: by the million, killed, resized, and at the end not larger than at the start."""
