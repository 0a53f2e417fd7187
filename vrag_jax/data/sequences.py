"""A tokenised multimodal sequence: the one unit that the learner trains on."""

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future

import numpy as np
from PIL import Image

from vrag_jax.models.common.pixels import PixelScale, image_patches
from vrag_jax.models.qwen2_5_vl.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class ProcessedImage:
    """One image as the vision tower takes it.

    Attributes:
      key: hash of the pixels and the size; equal images have equal keys.
      patches: `[n, patch_bytes]` uint8, see `pixels.image_patches`.
      grid_thw: `(t, h, w)`, the image's size in patches.
      tokens: number of merged features, `t * h * w / merge_size**2`.
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
      processor: a `transformers` image processor of the Qwen2-VL family. It makes numbers
        of bytes, in patches of a size, as the policy's vision tower has to.
      vision: sizes of the tower, and how it scales bytes.
      cache_bytes: patches that are kept, those used last; 0 for none.

    Raises:
      ValueError: if the processor does it in another way than the tower; names what differs.
    """

    def __init__(self, processor, vision: VisionConfig, cache_bytes: int = 0):
        for name, wanted, has in (
                ('patch_size', processor.patch_size, vision.patch_size),
                ('merge_size', processor.merge_size, vision.spatial_merge_size),
                ('temporal_patch_size', processor.temporal_patch_size,
                 vision.temporal_patch_size),
                ('scale', PixelScale.of_processor(processor), vision.pixels)):
            if wanted != has:
                raise ValueError(f'the {name} of the image processor is {wanted}, but that of the '
                                 f'vision tower {has}')
        self._vision = vision
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[str, ProcessedImage] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[str, Future[ProcessedImage]] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Seq[Image.Image]) -> list[ProcessedImage]:
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
        size, merge = self._vision.patch_size, self._vision.spatial_merge_size
        made = []
        for key, image in images.items():
            patches = image_patches(image, size, merge)
            grid = (1, image.height // size, image.width // size)
            made.append(ProcessedImage(key, patches, grid, len(patches) // merge**2))
        return made


def image_key(image: Image.Image) -> str:
    """Returns the hash of an image's mode, size and pixels."""
    digest = hashlib.blake2b(f'{image.mode}{image.size}'.encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """Tokens with everything the learner needs to know of each of them.

    Attributes:
      tokens: `[T]` int32 token ids.
      loss_mask: `[T]` float32, 1 where the token is trained on (it was sampled).
      position_ids: `[3, T]` int32 M-RoPE positions (time, height, width).
      image_index: `[T]` int32 row among the merged features of `images`
        concatenated, -1 for text.
      images: the images, in order of appearance.
      advantages: `[T]` float32, or None outside RL.
      old_logprobs: `[T]` float32 log-probs under the policy before the update, or None.
      ref_logprobs: `[T]` float32 log-probs under the reference policy, or None.
      sampler_logprobs: `[T]` float32 log-probs as recorded when sampled, or None.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    image_index: np.ndarray
    images: tuple[ProcessedImage, ...] = ()
    advantages: np.ndarray | None = None
    old_logprobs: np.ndarray | None = None
    ref_logprobs: np.ndarray | None = None
    sampler_logprobs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def global_rows(
    image_index: np.ndarray, images: Seq[ProcessedImage], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Maps rows among a sequence's own image features to rows of a shared buffer.

    Args:
      image_index: `[T]` int32, rows among the features of `images`, -1 on text.
      images: the sequence's images in order.
      rows: `[tokens]` int32 rows of each image's features in the buffer, by key.

    Returns:
      `[T]` int32 rows of the buffer, -1 on text.
    """
    if not images:
        return image_index
    table = np.concatenate([rows[image.key] for image in images])
    return np.where(image_index >= 0, table[image_index], -1).astype(np.int32)
