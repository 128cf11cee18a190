"""Large arrays there and back: a picture is cut into tiles, and the workers of a pool blur them.

Each tile is a numpy array of about a megabyte. Tiles overlap by as much as the blur reaches, so that what is put
together of them is what would have come of the picture in one piece.

It needs numpy: ``pip install numpy``.

Run it: ``python examples/arrays.py [--side PIXELS] [--rounds N] [--workers N]``
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from collections.abc import Iterator

from pairpool import Pool

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers are what runs side by side here

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError:
    raise SystemExit("this example needs numpy: pip install numpy") from None

TILE = 512  # pixels of a tile's side
REACH = 4  # pixels that the blur looks to each side

Picture = NDArray[np.uint32]


def draw(side: int) -> Picture:
    """Draw rings and stripes, in whole numbers, so that they are the same everywhere."""
    row, column = np.ogrid[:side, :side]
    drawn: Picture = ((row * row + column * column) // 97 % 1024 + (row ^ column) % 256).astype(np.uint32)
    return drawn


def add_up(rows: Picture) -> Picture:
    """Return the sum of each row and of as many after it as the blur looks at."""
    height = len(rows) - 2 * REACH
    total = rows[:height].copy()
    for shift in range(1, 2 * REACH + 1):
        total += rows[shift : shift + height]
    return total


def blur(tile: Picture) -> Picture:
    """Return the mean of all pixels up to `REACH` away, in sixteenths, of each pixel that has all of those."""
    tile *= 16  # in place: the worker has the tile to itself
    return add_up(add_up(tile).T).T // (2 * REACH + 1) ** 2


def cut(picture: Picture) -> Iterator[Picture]:
    """Yield the tiles of a picture, row by row, each with what the blur looks at around it."""
    framed = np.pad(picture, REACH, mode="edge")
    for row in range(0, len(picture), TILE):
        for column in range(0, len(picture), TILE):
            yield framed[row : row + TILE + 2 * REACH, column : column + TILE + 2 * REACH]


def put_together(tiles: Iterator[Picture], side: int) -> Picture:
    """Put tiles together that come row by row."""
    picture = np.empty((side, side), np.uint32)
    for row in range(0, side, TILE):
        for column in range(0, side, TILE):
            picture[row : row + TILE, column : column + TILE] = next(tiles)
    return picture


def main() -> None:
    """Blur a picture several times, and compare with what comes of it in one piece."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=4096, help="pixels of the picture's side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(2, len(os.sched_getaffinity(0))))
    options = parser.parse_args()

    picture = draw(options.side)
    print(f"{options.side} x {options.side} pixels in tiles of {TILE} x {TILE}, {options.workers} workers", flush=True)
    blurred = picture
    with Pool(options.workers) as pool:
        for turn in range(1, options.rounds + 1):
            begun = time.perf_counter()
            blurred = put_together(pool.imap(blur, cut(picture)), options.side)
            seconds = time.perf_counter() - begun
            print(f"round {turn}: {seconds:.2f} s, {2 * picture.nbytes / seconds / 2**20:.0f} MiB/s there and back")
    pool.join()
    whole = blur(np.pad(picture, REACH, mode="edge"))
    print("the same as in one piece:", np.array_equal(blurred, whole))
    print(f"checksum: {zlib.crc32(blurred.tobytes()):08x}")


if __name__ == "__main__":
    main()
