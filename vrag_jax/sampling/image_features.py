"""Each image is encoded once per policy version: a bounded buffer of features."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vrag_jax.data.sequences import ProcessedImage
from vrag_jax.models.config import ModelConfig
from vrag_jax.models.packing import count_windows, pack_images
from vrag_jax.models.parameters import Params, merge
from vrag_jax.models.qwen2_5_vl import Qwen2_5_VL


class ImageFeatureCache:
    """Features of images by content, in one device buffer of fixed size.

    Features of an image lie in consecutive rows. When the buffer is full it is
    emptied and what is needed now is encoded again, so memory is bounded
    whatever the number of images.

    Args:
      encode: jitted encoder, see `make_encoder`.
      config: sizes of the policy.
      rows: feature rows the buffer holds (one for each 28 x 28 pixels).
      windows: attention windows encoded at a time (one compilation).
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
        windows: int,
        span: int,
        dtype: jnp.dtype = jnp.float32,
        mesh: Mesh | None = None,
    ):
        self._encode = encode
        self._config = config
        self._windows = windows
        self._span = span
        self._rows = rows
        self._first_row: dict[str, int] = {}
        self._next = 0
        self.buffer = jnp.zeros(
            (rows, config.text.hidden_size), dtype, device=_replicated(mesh))
        self.images_encoded = 0
        self.images_requested = 0

    def clear(self) -> None:
        """Forgets every image, as after an update of the vision tower."""
        self._first_row.clear()
        self._next = 0

    def rows_of(self, params: Params, images: Iterable[ProcessedImage]) -> dict[str, int]:
        """Makes sure that images are in the buffer.

        Args:
          params: the policy's parameters.
          images: images that are needed at the same time.

        Returns:
          The first row of each image in `buffer`, by key; valid until the next
          call.

        Raises:
          ValueError: if the images do not fit into the buffer together, or one
            does not fit into `windows`.
        """
        wanted = {image.key: image for image in images}
        self.images_requested += len(wanted)
        needed = sum(image.tokens for image in wanted.values())
        if needed > self._rows:
            raise ValueError(
                f'{len(wanted)} images need {needed} feature rows at once, but the buffer '
                f'holds {self._rows}: raise rollout.feature_rows'
            )
        missing = [image for key, image in wanted.items() if key not in self._first_row]
        if self._next + sum(image.tokens for image in missing) > self._rows:
            self.clear()
            missing = list(wanted.values())
        for group in self._groups(missing):
            self._encode_group(params, group)
        return {key: self._first_row[key] for key in wanted}

    def _groups(self, images: list[ProcessedImage]) -> Iterator[list[ProcessedImage]]:
        """Splits images into groups that fit into `windows`."""
        group: list[ProcessedImage] = []
        used = 0
        for image in images:
            windows = count_windows([image.grid_thw], self._config.vision)
            if group and used + windows > self._windows:
                yield group
                group, used = [], 0
            group.append(image)
            used += windows
        if group:
            yield group

    def _encode_group(self, params: Params, group: list[ProcessedImage]) -> None:
        packed = pack_images(
            [(image.pixel_values, image.grid_thw) for image in group],
            self._config,
            windows=self._windows,
            span=self._span,
        )
        # One scatter writes the group; rows past the images point outside the
        # buffer and are dropped.
        used = sum(image.tokens for image in group)
        destination = np.full(packed.order.shape[0], self._rows, np.int32)
        destination[:used] = self._next + np.arange(used)
        self.buffer = self._encode(params, packed, self.buffer, destination)
        for image in group:
            self._first_row[image.key] = self._next
            self._next += image.tokens
        self.images_encoded += len(group)


def make_encoder(graphdef: nnx.GraphDef[Qwen2_5_VL], mesh: Mesh | None = None) -> Callable:
    """Returns the jitted `(params, PatchBatch, buffer [F, D], rows [M]) -> buffer`.

    Args:
      graphdef: structure of the policy.
      mesh: of the buffer, see `ImageFeatureCache`. What uses the buffer compiles
        again if it moves, as it does with None where the parameters are on a mesh.
    """

    def encode(params, batch, buffer, destination):
        features = merge(graphdef, params).encode_images(batch)
        return buffer.at[destination].set(features.astype(buffer.dtype), mode='drop')

    return jax.jit(encode, donate_argnums=2, out_shardings=_replicated(mesh))


def _replicated(mesh: Mesh | None) -> NamedSharding | None:
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())
