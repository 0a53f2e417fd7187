"""What stands beside the weights in a HF checkpoint directory, in and out."""

import copy
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.models.config import ModelConfig

_LOG = logging.getLogger(__name__)

CONFIG_FILE = 'config.json'
TOKENIZER_FILE = 'tokenizer_config.json'
GENERATION_FILE = 'generation_config.json'
IMAGE_PROCESSOR_FILE = 'preprocessor_config.json'
# Of the tokenizer, the chat template, the processors and generation, by any version.
COMPANIONS = (
    'tokenizer.json', TOKENIZER_FILE, 'vocab.json', 'merges.txt', 'added_tokens.json',
    'special_tokens_map.json', 'chat_template.json', 'chat_template.jinja', IMAGE_PROCESSOR_FILE,
    'processor_config.json', 'video_preprocessor_config.json', GENERATION_FILE)
# How transformers 4 and 5 call the dtype of the weights, of the model and of its towers.
_DTYPE_FIELDS = ('torch_dtype', 'dtype')
# Of a `text_config`: not the whole model's, or written in another way by `to_hf`.
_NOT_OF_THE_MODEL = (*_DTYPE_FIELDS, 'model_type', 'architectures', '_name_or_path',
                     'layer_types', 'rope_parameters')


def exported_config(
    config: ModelConfig, dtype: str, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the `config.json` of an exported model, which transformers 4.49 and newer read.

    Args:
      config: sizes.
      dtype: of the weights, e.g. 'bfloat16'.
      source: the parsed `config.json` of the checkpoint that the model was trained from: all
        else that it says is kept. The layout of transformers 5, which 4.51 takes for another
        model, becomes the published one, which both read.
    """
    out = copy.deepcopy(dict(source or {}))
    nested = out.pop('text_config', None)
    if not source or nested is not None or 'rope_parameters' in out:
        vision = {name: value for name, value in (out.pop('vision_config', None) or {}).items()
                  if name not in _NOT_OF_THE_MODEL}
        kept = {**(nested or {}), **out}
        out = {name: value for name, value in kept.items() if name not in _NOT_OF_THE_MODEL}
        published = config.to_hf()
        out |= {**published, 'vision_config': {**vision, **published['vision_config']}}
    vision = out.get('vision_config') or {}
    vision |= {name: dtype for name in _DTYPE_FIELDS if name in vision}
    out |= {name: dtype for name in _DTYPE_FIELDS if name in out}
    # Without it transformers 4 loads float32; vLLM before 0.10.1 runs float32 in float16.
    return {**out, 'torch_dtype': dtype}


def copy_companions(source: Path, target: Path) -> None:
    """Copies the files of tokenizer, template, processors and generation, byte for byte.

    Says so if transformers 4 cannot read the tokenizer's, which transformers 5 wrote.
    """
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (target / TOKENIZER_FILE).is_file():
        fields = json.loads((target / TOKENIZER_FILE).read_text('utf-8'))
        if (isinstance(fields.get('extra_special_tokens'), list)
                or fields.get('tokenizer_class') == 'TokenizersBackend'):
            _LOG.warning(
                '%s was written by transformers 5, and transformers 4 (and vLLM with it) cannot '
                'read it, nor its copy in %s: take the file of the published model if they shall',
                source / TOKENIZER_FILE, target.name.removesuffix('.partial'))


def write_generation_config(directory: Path, end_ids: Sequence[int], pad_id: int) -> None:
    """Writes `generation_config.json`, unless it is there.

    Args:
      directory: of the checkpoint.
      end_ids: any of these ends a turn.
      pad_id: what batches are padded with.
    """
    _write(directory / GENERATION_FILE, {
        'do_sample': False, 'eos_token_id': list(end_ids), 'pad_token_id': pad_id})


def write_image_processor(directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes `preprocessor_config.json`, unless it is there.

    Args:
      directory: of the checkpoint.
      settings: a `Qwen2VLImageProcessor`'s, with `size`.
    """
    size = settings['size']
    _write(directory / IMAGE_PROCESSOR_FILE, {
        **settings, 'image_processor_type': 'Qwen2VLImageProcessor',
        'processor_class': 'Qwen2_5_VLProcessor',
        # transformers 4 reads these and ignores `size`.
        'min_pixels': size['shortest_edge'], 'max_pixels': size['longest_edge']})


def _write(file: Path, fields: Mapping[str, Any]) -> None:
    if not file.is_file():
        file.write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n')
