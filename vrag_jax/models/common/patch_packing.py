"""Images of any size packed into windowed patch buffers of a few sizes.

The layout is what makes window attention (Qwen2.5-VL) dense: row `w` of the
buffer is one attention window. A 140 x 84 pixel image has 5 x 3 merged tokens;
with windows of 4 x 4 it takes two rows, and what it does not fill is padding
(merged tokens are numbered in raster order, `.` is padding):

    row 0   0  1  2  .      row 1  12 13 14  .
            3  4  5  .              .  .  .  .
            6  7  8  .              .  .  .  .
            9 10 11  .              .  .  .  .
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from vrag_jax.models.common.config import ModelConfig, VisionConfig

Grid = tuple[int, int, int]
Array = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PatchBatch:
    """Patches of several images in `W` windows of `P` patches.

    An image's windows are consecutive rows.

    Attributes:
      pixels: `[W, P, patch_bytes]` uint8, see `pixels.image_patches`; or, of images that
        came as numbers, `[W, P, patch_dim]` float32, as the HF image processor flattens them.
      positions: `[W, P, 2]` int32, row and column of the patch in its image.
      image_ids: `[W, P]` int32, number of the image, -1 on padding.
      first_window: `[W]` int32, the row where the window's image begins.
      order: `[M]` int32, `M = W * P / merge_area`: the windowed row of each merged
        token, images one after the other in raster order; -1 on padding.
      span: windows that full attention looks at from each window, at least those
        of the largest image. Static: 1 makes full and window attention the same.
    """

    pixels: Array
    positions: Array
    image_ids: Array
    first_window: Array
    order: Array
    span: int = dataclasses.field(metadata={'static': True})


def bucket_size(n: int) -> int:
    """Returns the smallest 2^k or 1.5 * 2^k that is at least `n` (and 1)."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= n else power


def count_windows(grids: Iterable[Grid], config: VisionConfig) -> int:
    """Returns how many attention windows images of these grids take together."""
    side = config.window_units * config.spatial_merge_size
    return sum(-(-int(h) // side) * -(-int(w) // side) for _, h, w in grids)


def pack_images(
    images: Sequence[tuple[np.ndarray, Grid]],
    config: ModelConfig,
    windows: int | None = None,
    span: int | None = None,
) -> PatchBatch:
    """Packs processed images into one buffer.

    Args:
      images: `(patches, (t, h, w) in patches)` of each image: `[n, patch_bytes]` uint8 in
        the order of `pixels.image_patches`, or, all of them, `[n, patch_dim]` floats from
        the HF image processor.
      config: gives the sizes of patches and windows.
      windows: rows of the buffer; None takes the bucket that holds the images.
      span: see `PatchBatch`; None takes the bucket of the largest image. Fix it,
        as `windows`, where every batch must have the same compilation.

    Returns:
      A batch of numpy arrays.

    Raises:
      ValueError: if the images do not fit into `windows`, one does not fit into
        `span`, a grid and its patches disagree, an image is a video (t > 1), or some are
        bytes and some are floats.
    """
    vision = config.vision
    as_bytes = [values.dtype == np.uint8 for values, _ in images]
    if any(as_bytes) and not all(as_bytes):
        raise ValueError(f'images {[n for n, own in enumerate(as_bytes) if not own]} are floats, '
                         'the others bytes: all must be of one kind')
    for number, (pixels, grid) in enumerate(images):
        _check_image(number, pixels, grid, vision)
    sizes = [count_windows([grid], vision) for _, grid in images]
    rows = bucket_size(sum(sizes)) if windows is None else windows
    if sum(sizes) > rows:
        raise ValueError(f'{len(images)} images take {sum(sizes)} attention windows, '
                         f'but windows = {rows}')
    largest = max(sizes, default=1)
    span = bucket_size(largest) if span is None else span
    if largest > span:
        raise ValueError(f'the largest image takes {largest} attention windows, '
                         f'but span = {span}')

    units, area = vision.window_units**2, vision.merge_area
    pixels = (np.zeros((rows * units, area, vision.patch_bytes), np.uint8) if all(as_bytes)
              else np.zeros((rows * units, area, vision.patch_dim), np.float32))
    positions = np.zeros((rows * units, area, 2), np.int32)
    image_ids = np.full((rows * units, area), -1, np.int32)
    order = np.full(rows * units, -1, np.int32)
    first_window = np.arange(rows, dtype=np.int32)
    start, filled = 0, 0
    for number, ((values, grid), size) in enumerate(zip(images, sizes, strict=True)):
        places = start * units + _window_places(grid, vision)
        pixels[places] = np.reshape(values, (-1, *pixels.shape[1:]))
        positions[places] = _patch_positions(grid, vision)
        image_ids[places] = number
        order[filled : filled + len(places)] = places
        first_window[start : start + size] = start
        start, filled = start + size, filled + len(places)
    return PatchBatch(
        pixels=pixels.reshape(rows, units * area, -1),
        positions=positions.reshape(rows, units * area, 2),
        image_ids=image_ids.reshape(rows, units * area),
        first_window=first_window,
        order=order,
        span=min(span, rows),
    )


def _check_image(number: int, pixels: np.ndarray, grid: Grid, config: VisionConfig) -> None:
    t, h, w = grid
    if t != 1:
        raise ValueError(f'image {number}: grid {tuple(grid)} is a video (t > 1); '
                         'only images are supported')
    merge = config.spatial_merge_size
    if h < merge or w < merge or h % merge or w % merge:
        raise ValueError(f'image {number}: grid {tuple(grid)} must have sides that are '
                         f'multiples of {merge}')
    expected = (h * w, config.patch_bytes if pixels.dtype == np.uint8 else config.patch_dim)
    if pixels.shape != expected:
        raise ValueError(f'image {number}: {pixels.dtype} patches of shape {pixels.shape}, '
                         f'expected {expected} for grid {tuple(grid)}')


def _window_places(grid: Grid, config: VisionConfig) -> np.ndarray:
    """Windowed row of each merged token of an image, in raster order, `[n]`."""
    side, merge = config.window_units, config.spatial_merge_size
    row, column = np.indices((grid[1] // merge, grid[2] // merge)).reshape(2, -1)
    across = -(-grid[2] // (merge * side))
    window = (row // side) * across + column // side
    return window * side**2 + (row % side) * side + column % side


def _patch_positions(grid: Grid, config: VisionConfig) -> np.ndarray:
    """Row and column of each patch, `[n, merge_area, 2]`, in the processor's order."""
    merge = config.spatial_merge_size
    blocks = np.indices(grid[1:]).reshape(2, grid[1] // merge, merge, grid[2] // merge, merge)
    return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, merge**2, 2)
