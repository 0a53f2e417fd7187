"""Micro-batches of packed rows: fixed shapes, so that nothing compiles twice."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vrag_jax.data.row_packing import pack
from vrag_jax.data.sequences import TokenSequence, global_rows
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.families import image_spec

# What a sequence may hold of each token.
TOKEN_VALUES = ('advantages', 'old_logprobs', 'ref_logprobs', 'sampler_logprobs')

Array = Any  # numpy on the host, jax on the devices and under jit


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """Static shape of a micro-batch.

    Attributes:
      rows: rows a micro-batch (a multiple of the devices that share the batch).
      row_buckets: smaller numbers of rows that a micro-batch may have instead, so
        that a small one costs less; one compilation each. Those that do not split over
        the devices are left out.
      length: tokens a row; a longer sequence is refused.
      length_buckets: other lengths that a row may have, divisors of `length`: a micro-batch
        then has as many rows more, so it holds as many tokens. Taken where sequences
        leave less padding in them; one compilation each.
      windows: attention windows for the images of a micro-batch, used where the
        vision tower runs inside the step (otherwise features come from a cache).
      span: windows that the largest image may take, likewise.
      window_buckets: windows that go with each of `row_buckets`; () gives each of
        them `windows`.
    """

    rows: int = 8
    length: int = 1024
    windows: int = 64
    span: int = 1
    row_buckets: tuple[int, ...] = ()
    window_buckets: tuple[int, ...] = ()
    length_buckets: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ('rows', 'length', 'windows', 'span'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if any(not 0 < n < self.length or self.length % n for n in self.length_buckets):
            raise ValueError(f'length_buckets {self.length_buckets} must be divisors of '
                             f'length = {self.length}')
        if any(not 0 < n < self.rows for n in self.row_buckets):
            raise ValueError(f'row_buckets {self.row_buckets} must lie between 0 and {self.rows}')
        if self.window_buckets and len(self.window_buckets) != len(self.row_buckets):
            raise ValueError(f'window_buckets {self.window_buckets} must be as many as '
                             f'row_buckets {self.row_buckets}')
        if any(not 0 < n <= self.windows for n in self.window_buckets):
            raise ValueError(
                f'window_buckets {self.window_buckets} must lie between 0 and {self.windows}')

    def over(self, shards: int) -> 'BatchLayout':
        """Returns the layout without those numbers of rows that do not split over devices."""
        fewer = self.window_buckets or (self.windows,) * len(self.row_buckets)
        kept = [size for size in zip(self.row_buckets, fewer, strict=True) if not size[0] % shards]
        return dataclasses.replace(
            self, row_buckets=tuple(rows for rows, _ in kept),
            window_buckets=tuple(windows for _, windows in kept) if self.window_buckets else ())

    def size_for(self, rows: int, windows: int = 0) -> tuple[int, int]:
        """Returns the smallest allowed rows and windows that hold as many as are given."""
        fewer = self.window_buckets or (self.windows,) * len(self.row_buckets)
        sizes = zip(self.row_buckets, fewer, strict=True)
        return min((size for size in sizes if size[0] >= rows and size[1] >= windows),
                   default=(self.rows, self.windows))

    def next_rows(self, left: int) -> int:
        """Returns how many rows the next micro-batch takes where so many are left.

        The largest size that is filled, or, where none is, the smallest.
        """
        sizes = (*self.row_buckets, self.rows)
        return max((n for n in sizes if n <= left), default=min(sizes))

    def with_length(self, length: int) -> 'BatchLayout':
        """Returns the layout of rows of another length, with as many tokens."""
        more = self.length // length
        return dataclasses.replace(
            self, length=length, length_buckets=(), rows=self.rows * more,
            row_buckets=tuple(n * more for n in self.row_buckets))

    def lengths(self) -> Iterator['BatchLayout']:
        """Yields a layout for each length, the shortest first, with that length alone."""
        for length in sorted((*self.length_buckets, self.length)):
            yield self.with_length(length)

    def sizes(self) -> Iterator['BatchLayout']:
        """Yields a layout for each shape that a micro-batch may have, with that shape alone."""
        for layout in self.lengths():
            fewer = self.window_buckets or (self.windows,) * len(self.row_buckets)
            for rows, windows in ((layout.rows, self.windows),
                                  *zip(layout.row_buckets, fewer, strict=True)):
                yield dataclasses.replace(
                    layout, rows=rows, windows=windows, row_buckets=(), window_buckets=())

    def positions(self, rows: int) -> int:
        """Returns the positions, padding and all, of the micro-batches for so many rows."""
        total = 0
        while rows > 0:
            size = self.next_rows(rows)
            total, rows = total + size * self.length, rows - size
        return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch of `R` packed rows of `T` tokens.

    Position `t` holds a token and, in `targets`, `weights` and what follows, the
    facts about the token it predicts, `t + 1` of the same sequence.

    Attributes:
      tokens: `[R, T]` int32.
      position_ids: `[3, R, T]` int32 M-RoPE positions.
      segment_ids: `[R, T]` int32, from 1 in each row, 0 on padding.
      image_index: `[R, T]` int32 row of the image features, -1 on text.
      targets: `[R, T]` int32.
      weights: `[R, T]` float32, 1 where the target is trained on.
      advantages: `[R, T]` float32.
      old_logprobs: `[R, T]` float32.
      ref_logprobs: `[R, T]` float32.
      sampler_logprobs: `[R, T]` float32.
      images: packed images (`ImageSpec.pack`), or None where features come from a cache.
    """

    tokens: Array
    position_ids: Array
    segment_ids: Array
    image_index: Array
    targets: Array
    weights: Array
    advantages: Array
    old_logprobs: Array
    ref_logprobs: Array
    sampler_logprobs: Array
    images: Any = None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a sequence lies in a micro-batch: row, first column, length."""

    sequence: int
    row: int
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """A `Batch` on the host and the places of its sequences in it."""

    batch: Batch
    placements: tuple[Placement, ...]

    @property
    def positions(self) -> int:
        """Positions of the batch, with and without a token."""
        return self.batch.tokens.size

    def scatter(self, values: np.ndarray, sequences: Sequence[TokenSequence]) -> dict:
        """Takes values of the predicting positions back to the predicted tokens.

        Args:
          values: `[R, T]` float32, at the position before the token it is about.
          sequences: all sequences, as given to `micro_batches`.

        Returns:
          A `[T_i]` float32 array for each sequence index in this micro-batch; 0 on
          first tokens, which nothing predicts.
        """
        out = {}
        for place in self.placements:
            result = np.zeros(len(sequences[place.sequence]), np.float32)
            result[1:] = values[place.row, place.start : place.start + place.length - 1]
            out[place.sequence] = result
        return out


FeatureRows = Callable[[Sequence[ProcessedImage]], Mapping[str, np.ndarray]]


def micro_batches(
    sequences: Sequence[TokenSequence],
    layout: BatchLayout,
    config: ModelConfig,
    feature_rows: FeatureRows | None = None,
) -> Iterator[MicroBatch]:
    """Packs sequences first-fit into rows and rows into micro-batches.

    Args:
      sequences: what to pack.
      layout: shape of a micro-batch.
      config: sizes of the model.
      feature_rows: returns the rows of images' features in a cache, by image key; asked
        when a micro-batch is built. None makes the step encode the images itself.

    Yields:
      Micro-batches that together hold every sequence once.

    Raises:
      ValueError: if a sequence is longer than a row, or its images alone do not
        fit into `layout.windows`.
    """
    for index, sequence in enumerate(sequences):
        if len(sequence) > layout.length:
            raise ValueError(
                f'sequence {index} has {len(sequence)} tokens, '
                f'but a row holds layout.length = {layout.length}'
            )
    spec = image_spec(config)
    layout, rows = fit_rows([len(s) for s in sequences], layout)
    group: list[list[int]] = []
    images: dict[str, ProcessedImage] = {}
    size = layout.next_rows(len(rows))
    for number, row in enumerate(rows):
        added = {image.key: image for i in row for image in sequences[i].images}
        union = {**images, **added}
        full = len(group) == size
        crowded = (
            feature_rows is None
            and spec.count_windows(i.grid_thw for i in union.values()) > layout.windows
        )
        if group and (full or crowded):
            yield _build(group, images, sequences, layout, spec, feature_rows)
            group, images, union = [], {}, added
            size = layout.next_rows(len(rows) - number)
        group.append(row)
        images = union
    if group:
        yield _build(group, images, sequences, layout, spec, feature_rows)


def fit_rows(lengths: Sequence[int], layout: BatchLayout) -> tuple[BatchLayout, list[list[int]]]:
    """Packs sequences into rows of the length that leaves the least padding.

    Args:
      lengths: tokens of each sequence, none above `layout.length`.
      layout: lengths to choose from.

    Returns:
      The layout with that length alone, and the sequences of each row.
    """
    longest = max(lengths, default=0)
    tried = [(one, pack(lengths, one.length)) for one in layout.lengths() if one.length >= longest]
    return min(tried, key=lambda pair: pair[0].positions(len(pair[1])))


def empty_batch(layout: BatchLayout, config: ModelConfig, with_images: bool) -> Batch:
    """Returns a micro-batch without a token, of the shape that `layout` gives.

    Args:
      layout: its shape.
      config: sizes of the model.
      with_images: whether the step encodes images itself.
    """
    rows: FeatureRows | None = None if with_images else lambda _: {}
    return _build([], {}, (), layout, image_spec(config), rows).batch


def _build(group, images, sequences, layout, spec, feature_rows) -> MicroBatch:
    """Writes rows of sequence indices into the arrays of a `Batch`."""
    needed = (0 if feature_rows is not None
              else spec.count_windows(i.grid_thw for i in images.values()))
    row_count, windows = layout.size_for(len(group), needed)
    shape = (row_count, layout.length)
    ints = {name: np.zeros(shape, np.int32) for name in ('tokens', 'segment_ids', 'targets')}
    floats = {
        name: np.zeros(shape, np.float32)
        for name in ('weights', *TOKEN_VALUES)
    }
    image_index = np.full(shape, -1, np.int32)
    position_ids = np.zeros((3, *shape), np.int32)
    packed = None
    unique = list(images.values())
    if feature_rows is None:
        packed = spec.pack(unique, windows=windows, span=layout.span)
        starts = np.cumsum([0] + [i.tokens for i in unique])
        rows_of: Mapping[str, np.ndarray] = {
            image.key: start + np.arange(image.tokens, dtype=np.int32)
            for image, start in zip(unique, starts, strict=False)}
    else:
        rows_of = feature_rows(unique)

    placements = []
    for row, members in enumerate(group):
        start = 0
        for segment, index in enumerate(members, start=1):
            sequence = sequences[index]
            n = len(sequence)
            here, before = slice(start, start + n), slice(start, start + n - 1)
            ints['tokens'][row, here] = sequence.tokens
            ints['segment_ids'][row, here] = segment
            position_ids[:, row, here] = sequence.position_ids
            image_index[row, here] = global_rows(
                sequence.image_index, sequence.images, rows_of
            )
            ints['targets'][row, before] = sequence.tokens[1:]
            floats['weights'][row, before] = sequence.loss_mask[1:]
            for name in TOKEN_VALUES:
                values = getattr(sequence, name)
                if values is not None:
                    floats[name][row, before] = values[1:]
            placements.append(Placement(index, row, start, n))
            start += n
    batch = Batch(
        position_ids=position_ids, image_index=image_index, images=packed, **ints, **floats
    )
    return MicroBatch(batch, tuple(placements))
