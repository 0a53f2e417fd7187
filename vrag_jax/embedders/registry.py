"""Embedders by name: what a config says of one, and loading it."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from vrag_jax.embedders import colqwen
from vrag_jax.embedders.interface import Embedder
from vrag_jax.embedders.text_embedder import (
    TextEmbedder,
    TextEmbedderConfig,
    check_text_embedder,
    wheel_directory,
)
from vrag_jax.embedders.visual_embedder import VisualConfig, VisualEmbedder
from vrag_jax.parallel.sharding import RULES, Rules

KINDS = ('text', 'colqwen', 'last_token')
DTYPES = ('float32', 'bfloat16')
MINILM = 'minilm'


@dataclasses.dataclass(frozen=True)
class EmbedderConfig:
    """Which embedder, and how it runs.

    Attributes:
      kind: 'text' (BERT and XLM-R encoders), 'colqwen' (ColQwen2 and ColQwen2.5, a vector
        for each token) or 'last_token' (Qwen2.5-VL embedders such as GVE).
      path: HF directory of the model, or of its LoRA adapter; of kind 'text' also
        'minilm', all-MiniLM-L6-v2 from the package that ships it.
      dtype: of computation and parameters; pooling and unit vectors are float32.
      batch_tokens: tokens of a batch, padding included.
      retriever: kind of retriever that searches its vectors; '' is 'single_vector' of one vector
        a page, 'late_interaction' of several.
      text: of kind 'text'.
      visual: of the other kinds.
    """

    kind: str = 'text'
    path: str = MINILM
    dtype: str = 'float32'
    batch_tokens: int = 16_384
    retriever: str = ''
    text: TextEmbedderConfig = TextEmbedderConfig()
    visual: VisualConfig = VisualConfig()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f'kind must be one of {KINDS}, got {self.kind!r}')
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {DTYPES}, got {self.dtype!r}')
        if self.batch_tokens < 1:
            raise ValueError(f'batch_tokens must be positive, got {self.batch_tokens}')
        unused, name = ((self.visual, 'visual') if self.kind == 'text' else (self.text, 'text'))
        if unused != type(unused)():
            raise ValueError(f'an embedder of kind {self.kind!r} does not read {name!r}')


def check_embedder(config: EmbedderConfig) -> None:
    """Reads the configs of an embedder and the names of a visual one's tensors, not its weights.

    Raises:
      FileNotFoundError, ValueError: as `load_embedder` does.
    """
    if config.kind == 'text':
        check_text_embedder(_text_directory(config), config.text)
    else:
        colqwen.open_checkpoint(colqwen.find_checkpoint(
            Path(config.path), config.kind == 'colqwen', config.visual.base))


def _text_directory(config: EmbedderConfig) -> Path:
    return wheel_directory() if config.path == MINILM else Path(config.path)


def load_embedder(config: EmbedderConfig, mesh: Mesh | None = None,
                  rules: Rules = RULES) -> Embedder:
    """Loads an embedder.

    Args:
      config: which.
      mesh: of the parameters and the rows of a batch; None is the default device. Of
        several processes each passes its own, see `processes.local_mesh`.
      rules: mesh axes of each logical axis.

    Raises:
      FileNotFoundError: if the directory or a file in it is missing.
      ValueError: if it holds another model; says what does not fit.
    """
    if config.kind == 'text':
        text = config.text
        if config.path == MINILM:
            text = dataclasses.replace(text, latin_only=True)
        return TextEmbedder(
            _text_directory(config), text, config.dtype, config.batch_tokens, mesh, rules)
    return VisualEmbedder(Path(config.path), config.kind == 'colqwen', config.visual,
                          config.dtype, config.batch_tokens, mesh, rules)
