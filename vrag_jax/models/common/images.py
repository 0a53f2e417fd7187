"""Images as a policy takes them: patches, cut on the host once for all who ask."""

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from PIL import Image

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.mrope import image_positions
from vrag_jax.models.common.patch_packing import Grid, PatchBatch, count_windows, pack_images
from vrag_jax.models.common.pixels import PixelScale, image_patches
from vrag_jax.models.policy import ImageSpec, PackedImages


@dataclasses.dataclass(frozen=True)
class PatchImages:
    """An `ImageSpec`: patches of a `VisionConfig`, one feature for each token of the decoder."""

    config: ModelConfig

    @property
    def factor(self) -> int:
        return self.config.vision.patch_size * self.config.vision.spatial_merge_size

    @property
    def window_tokens(self) -> int:
        return self.config.vision.window_units**2

    def cut(self, image: Image.Image) -> tuple[np.ndarray, Grid]:
        size = self.config.vision.patch_size
        patches = image_patches(image, size, self.config.vision.spatial_merge_size)
        return patches, (1, image.height // size, image.width // size)

    def tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1] * grid[2] // self.config.vision.merge_area

    def positions(self, start: int, grid: Grid) -> tuple[np.ndarray, int]:
        return image_positions(start, grid, self.config.vision.spatial_merge_size)

    def count_windows(self, grids: Iterable[Grid]) -> int:
        return count_windows(grids, self.config.vision)

    def pack(self, images: Sequence[PackedImages], windows: int | None = None,
             span: int | None = None) -> PatchBatch:
        return pack_images(
            [(image.patches, image.grid_thw) for image in images], self.config, windows, span)

    def features(self, rows: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, self.config.text.hidden_size), dtype)

    def check_processor(self, processor: Any) -> None:
        vision = self.config.vision
        for name, wanted, has in (
                ('patch_size', processor.patch_size, vision.patch_size),
                ('merge_size', processor.merge_size, vision.spatial_merge_size),
                ('temporal_patch_size', processor.temporal_patch_size,
                 vision.temporal_patch_size),
                ('scale', PixelScale.of_processor(processor), vision.pixels)):
            if wanted != has:
                raise ValueError(f'the {name} of the image processor is {wanted}, but that of the '
                                 f'vision tower {has}')


@dataclasses.dataclass(frozen=True)
class ProcessedImage:
    """One image as the vision tower takes it.

    Attributes:
      key: hash of the pixels and the size; equal images have equal keys.
      patches: `[n, patch_bytes]` uint8, see `ImageSpec.cut`.
      grid_thw: `(t, h, w)`, the image's size in patches.
      tokens: number of features, one row of them each.
    """

    key: str
    patches: np.ndarray
    grid_thw: tuple[int, int, int]
    tokens: int


class ImagePreprocessor:
    """Cuts PIL images of encoder size into patches, as the HF image processor does.

    Episodes of a group look at the same pages, often at the same time; patches are made once
    and shared, as long as they are kept. Safe to call from several threads.

    Args:
      processor: a HF image processor. It makes numbers of bytes, in patches of a size, as
        the policy's vision tower has to.
      spec: how the policy takes images.
      cache_bytes: patches that are kept, those used last; 0 for none.

    Raises:
      ValueError: if the processor does it in another way than the tower; names what differs.
    """

    def __init__(self, processor: Any, spec: ImageSpec, cache_bytes: int = 0):
        spec.check_processor(processor)
        self._spec = spec
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[str, ProcessedImage] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[str, Future[ProcessedImage]] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Sequence[Image.Image]) -> list[ProcessedImage]:
        """Processes images whose sides are already multiples of the patch factor.

        Args:
          images: RGB images, each at the size at which the encoder shall see it.

        Returns:
          One `ProcessedImage` an image, in order; not to be written to.
        """
        keys = [image_key(image) for image in images]
        found: dict[str, ProcessedImage] = {}
        own: dict[str, Image.Image] = {}
        others: dict[str, Future[ProcessedImage]] = {}
        with self._lock:
            for key, image in zip(keys, images, strict=True):
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key]
                elif key in self._under_way and key not in own:
                    others[key] = self._under_way[key]
                elif key not in own:
                    own[key] = image
                    self._under_way[key] = Future()
        if own:
            found.update(self._make(own))
        # Its own are done first, so no two threads wait for each other.
        found.update((key, future.result()) for key, future in others.items())
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forgets the patches that are kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def _make(self, images: Mapping[str, Image.Image]) -> dict[str, ProcessedImage]:
        """Processes images, keeps them, and hands them to those who wait for them."""
        try:
            made = self._process(images)
        except BaseException as error:
            with self._lock:
                for key in images:
                    self._under_way.pop(key).set_exception(error)
            raise
        with self._lock:
            for image in made:
                self._under_way.pop(image.key).set_result(image)
                self._kept[image.key] = image
                self._kept_bytes += image.patches.nbytes
            while self._kept_bytes > self._cache_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.patches.nbytes
        return {image.key: image for image in made}

    def _process(self, images: Mapping[str, Image.Image]) -> list[ProcessedImage]:
        # The sizes were chosen by perception, so nothing is resized here: the boxes' frames
        # would no longer be those of the image that is encoded.
        made = []
        for key, image in images.items():
            patches, grid = self._spec.cut(image)
            made.append(ProcessedImage(key, patches, grid, self._spec.tokens(grid)))
        return made


def image_key(image: Image.Image) -> str:
    """Returns the hash of an image's mode, size and pixels."""
    digest = hashlib.blake2b(f'{image.mode}{image.size}'.encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()
