"""Each image is encoded once per policy version: a bounded buffer of features."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.parameters import Params, merge
from vrag_jax.models.families import image_spec
from vrag_jax.models.policy import Features, PolicyModel
from vrag_jax.parallel.sharding import RULES, Rules, sharded_over


@dataclasses.dataclass(frozen=True)
class VisionFeaturesConfig:
    """The buffer of image features, and how images get into it.

    Attributes:
      rows: feature rows that the buffer holds.
      windows: attention windows encoded at a time; of several sizes the smallest that holds
        what is to be encoded.
      span: attention windows that the largest image may take.
    """

    rows: int = 16384
    windows: tuple[int, ...] = (64,)
    span: int = 16

    def __post_init__(self):
        if min((self.rows, self.span, *self.windows)) < 1 or not self.windows:
            raise ValueError(f'rows, windows and span must be positive, got {self}')


class ImageFeatureCache:
    """Features of images by content, in one device buffer of fixed size.

    When the buffer is full, the images that have not been asked for the longest make
    room, so memory is bounded whatever the number of images.

    Attributes:
      buffer: `[rows, ...]` features; encoding replaces it, and donates the old one.
      lock: a thread that shares the cache with another holds it from `rows_of` until
        it has dispatched what reads `buffer`.
      images_encoded, images_requested: how many, since the start.

    Args:
      encode: jitted encoder, see `make_encoder`.
      config: sizes of the policy.
      rows: feature rows the buffer holds, one for each token of an image.
      windows: attention windows encoded at a time; several numbers are sizes to
        choose from, one compilation each.
      span: windows that the largest image may take.
      dtype: dtype of the features.
      mesh: of the parameters; every device has the whole buffer. None leaves it on
        the default device.
    """

    def __init__(
        self,
        encode: Callable,
        config: ModelConfig,
        rows: int,
        windows: int | Sequence[int],
        span: int,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
    ):
        self._encode = encode
        self._spec = image_spec(config)
        self._windows = sorted([windows] if isinstance(windows, int) else windows)
        self._span = span
        self.rows = rows
        self.lock = threading.RLock()
        # Least recently asked for first.
        self._rows_of: OrderedDict[str, np.ndarray] = OrderedDict()
        self._free = np.arange(rows, dtype=np.int32)
        self.buffer: Features = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype, device=_replicated(mesh)),
            self._spec.features(rows, dtype))
        self.images_encoded = 0
        self.images_requested = 0

    def clear(self) -> None:
        """Forgets every image, as after an update of the vision tower."""
        with self.lock:
            self._rows_of.clear()
            self._free = np.arange(self.rows, dtype=np.int32)

    def warm_up(self, params: Params) -> None:
        """Compiles the encoder for all sizes, by running it on nothing."""
        with self.lock:
            for windows in self._windows:
                self._run(params, [], windows, np.zeros(0, np.int32))

    def rows_of(
        self, params: Params, images: Iterable[ProcessedImage]
    ) -> dict[str, np.ndarray]:
        """Makes sure that images are in the buffer.

        Args:
          params: the policy's parameters.
          images: images that are needed at the same time.

        Returns:
          `[tokens]` int32 rows of each image in `buffer`, by key; valid until the next
          call.

        Raises:
          ValueError: if the images do not fit into the buffer together, or one
            does not fit into `windows`.
        """
        wanted = {image.key: image for image in images}
        needed = sum(image.tokens for image in wanted.values())
        if needed > self.rows:
            raise ValueError(
                f'{len(wanted)} images need {needed} feature rows at once, but the buffer '
                f'holds {self.rows}: raise config.vision_features.rows')
        with self.lock:
            self.images_requested += len(wanted)
            missing = []
            for key, image in wanted.items():
                if key in self._rows_of:
                    self._rows_of.move_to_end(key)
                else:
                    missing.append(image)
            self._make_room(sum(image.tokens for image in missing), wanted)
            for group, windows in self._groups(missing):
                self._encode_group(params, group, windows)
            return {key: self._rows_of[key] for key in wanted}

    def _make_room(self, rows: int, keep: Iterable[str]) -> None:
        """Evicts images, the longest unused first, until so many rows are free."""
        while len(self._free) < rows:
            # Those that are kept have just been moved to the end.
            key = next(iter(self._rows_of))
            assert key not in keep
            self._free = np.concatenate([self._free, self._rows_of.pop(key)])

    def _groups(
        self, images: list[ProcessedImage]
    ) -> Iterator[tuple[list[ProcessedImage], int]]:
        """Splits images into groups, each with the smallest size that holds it."""
        counts = [self._spec.count_windows([image.grid_thw]) for image in images]
        start = 0
        while start < len(images):
            stop = start + 1
            while stop < len(images) and sum(counts[start : stop + 1]) <= self._windows[-1]:
                stop += 1
            used = sum(counts[start:stop])
            size = min((n for n in self._windows if n >= used), default=self._windows[-1])
            yield images[start:stop], size
            start = stop

    def _encode_group(self, params: Params, group: list[ProcessedImage], windows: int) -> None:
        used = sum(image.tokens for image in group)
        places, self._free = np.split(self._free, [used])
        self._run(params, group, windows, places)
        ends = np.cumsum([image.tokens for image in group])[:-1]
        for image, rows in zip(group, np.split(places, ends), strict=True):
            self._rows_of[image.key] = rows
        self.images_encoded += len(group)

    def _run(self, params: Params, group: list[ProcessedImage], windows: int,
             places: np.ndarray) -> None:
        packed = self._spec.pack(group, windows=windows, span=self._span)
        # One scatter writes the group; rows past the images point outside the
        # buffer and are dropped.
        destination = np.full(windows * self._spec.window_tokens, self.rows, np.int32)
        destination[: len(places)] = places
        self.buffer = self._encode(params, packed, self.buffer, destination)


def make_encoder(
    graphdef: nnx.GraphDef[PolicyModel], mesh: Mesh | None = None, rules: Rules = RULES
) -> Callable:
    """Returns the jitted `(params, images, buffer [F, ...], rows [M]) -> buffer`.

    Args:
      graphdef: structure of the policy.
      mesh: of the buffer, see `ImageFeatureCache`. What uses the buffer compiles
        again if it moves, as it does with None where the parameters are on a mesh.
      rules: mesh axes of each logical axis.
    """

    def encode(params, batch, buffer, destination):
        with sharded_over(mesh, rules):
            features = merge(graphdef, params).encode_images(batch)
        return jax.tree.map(
            lambda all, new: all.at[destination].set(new.astype(all.dtype), mode='drop'),
            buffer, features)

    return jax.jit(encode, donate_argnums=2, out_shardings=_replicated(mesh))


def _replicated(mesh: Mesh | None) -> NamedSharding | None:
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())
