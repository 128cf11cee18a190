"""Builds the one optional C extension; everything else stands in pyproject.toml.

PAIRPOOL_EXTENSION decides: ``0`` builds none, ``1`` fails if it cannot be built, unset (or empty) builds it
if that can be done. The variable means the same at run time (`pairpool._framing`).
"""

import os
import platform
import sys

from setuptools import Extension, setup

CHOICES = ("", "0", "1")

choice = os.environ.get("PAIRPOOL_EXTENSION", "")
if choice not in CHOICES:
    sys.exit(f"PAIRPOOL_EXTENSION must be 0, 1 or unset, not {choice!r}")

cpython_on_linux = platform.python_implementation() == "CPython" and sys.platform == "linux"

# Built with 3.11 one wheel serves every version. Built with a later one it would be for that and later ones only,
# whatever Py_LIMITED_API says: its headers do not count references to None and True, which 3.11 does.
stable_abi = sys.version_info[:2] == (3, 11)

extension = Extension(
    "pairpool._framing_c",
    sources=["pairpool/_framing_c.c"],
    py_limited_api=stable_abi,
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if stable_abi else [],
    optional=choice != "1",
)
wanted = choice == "1" or (choice == "" and cpython_on_linux)

setup(
    ext_modules=[extension] if wanted else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if wanted and stable_abi else {},
)
