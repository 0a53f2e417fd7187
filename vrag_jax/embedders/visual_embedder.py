"""Visual embedder: page images through a Qwen2-VL or Qwen2.5-VL retriever."""

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.embedders import colqwen
from vrag_jax.embedders.fingerprint import fingerprint
from vrag_jax.embedders.interface import Grid, PageContent
from vrag_jax.embedders.length_batches import TokenBatch, plan
from vrag_jax.embedders.prompts import PromptEncoder, Prompts
from vrag_jax.models.common.images import ImagePreprocessor, ProcessedImage
from vrag_jax.models.common.parameters import merge
from vrag_jax.models.common.patch_packing import bucket_size
from vrag_jax.models.common.tokenizer import load_tokenizer
from vrag_jax.models.families import family_of, image_spec
from vrag_jax.parallel.sharding import (
    RULES,
    Rules,
    batch_sharding,
    devices_along,
    sharded_over,
)
from vrag_jax.perception.image_ops import PixelLimits, encoder_size, show_page

# ColQwen is trained on 768 tokens of an image at most. colpali-engine up to 0.3.8 had that in its
# code, and files of that time hold the largest area of Qwen's own processor (or none, which is
# transformers' default): as it stands, a large page would be 16,384 tokens.
_COLQWEN_TOKENS = 768
_QWEN_LARGEST = (16_384 * 28 * 28, 1280 * 28 * 28)


@dataclasses.dataclass(frozen=True)
class VisualConfig:
    """How pages and queries are shown; '' and 0 take what the checkpoint is made for.

    Attributes:
      base: directory of the base, where the checkpoint is a LoRA adapter.
      min_pixels, max_pixels: bounds of an image's area as the model sees it; of a ColQwen whose
        files only repeat Qwen's own, 768 tokens at most, which it is trained with.
      page_prompt, query_prompt, positions: see `Prompts`.
    """

    base: str = ''
    min_pixels: int = 0
    max_pixels: int = 0
    page_prompt: str = ''
    query_prompt: str = ''
    positions: str = ''


class VisualEmbedder:
    """Embeds page images: a vector for each token (ColQwen), or one of the last token (GVE).

    Args:
      directory: HF directory of the model or of its LoRA adapter, with `tokenizer.json`
        and `preprocessor_config.json` in it or in the base's.
      projected: whether it has vectors for each token.
      config: how pages and queries are shown.
      dtype: of the computation and the parameters; norms and unit vectors are float32.
      batch_tokens: tokens of a batch, padding included.
      mesh: rows are spread over its data axes; None is the default device.
      rules: mesh axes of each logical axis.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if it is another model, or asks for what is not supported.
    """

    reads: Literal['image'] = 'image'

    def __init__(self, directory: Path, projected: bool,
                 config: VisualConfig = VisualConfig(),  # noqa: B008 (immutable)
                 dtype: str = 'bfloat16', batch_tokens: int = 16_384, mesh: Mesh | None = None,
                 rules: Rules = RULES):
        checkpoint = colqwen.find_checkpoint(Path(directory), projected, config.base)
        processor = _image_processor(checkpoint.processor)
        checkpoint = dataclasses.replace(checkpoint, config=family_of(
            checkpoint.config).with_processor(checkpoint.config, processor))
        self.kind = 'visual_tokens' if projected else 'visual'
        self.multi_vector = projected
        self._config = checkpoint.config
        self._spec = image_spec(checkpoint.config)
        prompts = Prompts(config.page_prompt or checkpoint.prompts.page,
                          config.query_prompt or checkpoint.prompts.query,
                          config.positions or checkpoint.prompts.positions)
        self._prompts = PromptEncoder(
            load_tokenizer(checkpoint.processor), prompts, checkpoint.config)
        self._limits = _pixel_limits(processor, config, checkpoint)
        self._preprocess = ImagePreprocessor(processor, self._spec)
        self._batch_tokens, self._mesh, self._rules = batch_tokens, mesh, rules
        graphdef, self._params, self.dims = colqwen.load(checkpoint, dtype, mesh, rules)

        def run(params, batch):
            with sharded_over(mesh, rules):
                return merge(graphdef, params).embed_tokens(**batch)

        replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._run = jax.jit(run, out_shardings=replicated)
        self.tokens_read = 0
        # Threads take turns: devices must meet programs of a mesh in one order.
        self._dispatching = threading.Lock()
        directories = [d for d in (checkpoint.adapter, checkpoint.directory) if d is not None]
        settings = {**dataclasses.asdict(prompts), **dataclasses.asdict(self._limits),
                    'dtype': dtype}
        self.fingerprint = fingerprint(self.kind, directories[0], settings, *directories[1:])

    def embed_pages(self, pages: Sequence[PageContent]) -> list[np.ndarray]:
        """Returns `[T, dims]` float32 unit rows, one a token of the prompt; or 1 row."""
        images = [self._process(page) for page in pages]
        return self._embed([self._prompts.page(image) for image in images], images)

    def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        """Returns `[T, dims]` float32 unit rows, one a token of the prompt; or 1 row."""
        return self._embed([self._prompts.query(query) for query in queries])

    def input_digest(self, page: PageContent) -> str:
        """Returns a digest of the pixels of a page: equal if nothing tells two apart."""
        image = self._process(page)
        how = repr((image.grid_thw, self._config.vision.pixels)).encode()
        return hashlib.sha256(how + image.patches.tobytes()).hexdigest()

    def page_grids(self, pages: Sequence[PageContent]) -> list[Grid]:
        """Returns rows and columns of each page's image tokens, and the tokens before them."""
        if not self.multi_vector:
            raise ValueError(f'{self.kind} makes one vector of a page, not one a token')
        factor, grids = self._limits.factor, []
        for page in pages:
            width, height = encoder_size(*page.size, self._limits)
            grids.append((height // factor, width // factor, self._prompts.before_image))
        return grids

    def _process(self, page: PageContent) -> ProcessedImage:
        shown, _ = show_page(page.load_image(), page.page_id, self._limits)
        return self._preprocess([shown])[0]

    def _embed(self, rows: Sequence[tuple[np.ndarray, np.ndarray]],
               images: Sequence[ProcessedImage] | None = None) -> list[np.ndarray]:
        lengths = [len(ids) for ids, _ in rows]
        self.tokens_read += sum(lengths)
        out: list[Any] = [None] * len(rows)
        running: list[tuple[TokenBatch, jax.Array]] = []

        def collect(batch: TokenBatch, vectors: jax.Array) -> None:
            for item, row in zip(batch.items, np.asarray(vectors), strict=False):
                out[item] = row[: lengths[item]].copy() if self.multi_vector else row[None].copy()

        multiple = devices_along('batch', self._mesh, self._rules)
        for batch in plan(lengths, self._batch_tokens, multiple):
            arrays = self._arrays(batch, rows, lengths, images)
            if self._mesh is not None:
                arrays = jax.device_put(arrays, batch_sharding(self._mesh, arrays, self._rules))
            with self._dispatching:
                running.append((batch, self._run(self._params, arrays)))
            if len(running) > 1:  # The host prepares a batch while the device runs one.
                collect(*running.pop(0))
        for done in running:
            collect(*done)
        return out

    def _arrays(self, batch: TokenBatch, rows, lengths, images) -> dict[str, Any]:
        tokens = batch.pad([ids for ids, _ in rows])
        positions = np.stack([batch.pad([p[axis] for _, p in rows]) for axis in range(3)])
        arrays: dict[str, Any] = {
            'tokens': tokens, 'position_ids': positions, 'mask': batch.mask(lengths)}
        if images is None:
            return arrays
        shown = [images[item] for item in batch.items]
        # Room for as many windows in each row as the largest image takes: a full batch of
        # pages of one size has one shape.
        span = bucket_size(max(self._spec.count_windows([i.grid_thw]) for i in shown))
        arrays['images'] = self._spec.pack(shown, windows=batch.rows * span, span=span)
        is_image = tokens == self._config.image_token_id
        arrays['image_index'] = np.where(
            is_image, np.cumsum(is_image).reshape(tokens.shape) - 1, -1).astype(np.int32)
        return arrays


def _image_processor(directory: Path) -> Qwen2VLImageProcessorPil:
    if not any((directory / name).is_file()
               for name in ('preprocessor_config.json', 'processor_config.json')):
        raise FileNotFoundError(f'{directory}: holds no preprocessor_config.json')
    return Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)


def _pixel_limits(processor: Qwen2VLImageProcessorPil, config: VisualConfig,
                  checkpoint: colqwen.Checkpoint) -> PixelLimits:
    side = image_spec(checkpoint.config).factor
    size: Any = processor.size
    most = int(size['longest_edge'])
    if checkpoint.projected and most in _QWEN_LARGEST:
        most = _COLQWEN_TOKENS * side**2
    return PixelLimits(config.min_pixels or int(size['shortest_edge']),
                       config.max_pixels or most, side)
