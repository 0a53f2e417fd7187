"""Files beside the weights of a HF checkpoint directory, read and written."""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.models.common.config import ModelConfig

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


def copy_companions(source: Path, target: Path, processor_class: str) -> None:
    """Copies the files of tokenizer, template, processors and generation, byte for byte.

    But for fields that transformers 5 has written and 4 (and vLLM with it) cannot read, or would
    silently ignore: these become what both read.

    Args:
      source, target: checkpoint directories.
      processor_class: of transformers, for an image processor that does not name it.
    """
    for name in COMPANIONS:
        if not (source / name).is_file():
            continue
        shutil.copyfile(source / name, target / name)
        if name not in _MENDED:
            continue
        fields = json.loads((source / name).read_text('utf-8'))
        mended = _MENDED[name](fields, processor_class)
        if mended != fields:
            changed = sorted(key for key in fields.keys() | mended.keys()
                             if fields.get(key) != mended.get(key))
            (target / name).write_text(
                json.dumps(mended, indent=2, ensure_ascii=False) + '\n', 'utf-8')
            _LOG.info('%s was written by transformers 5; its copy says %s as transformers 4 reads '
                      'it, too', source / name, ', '.join(changed))


def _tokenizer_for_both(fields: Mapping[str, Any], _: str) -> dict[str, Any]:
    """Fields of `tokenizer_config.json` that transformers 4 and 5 read."""
    out = dict(fields)
    if isinstance(fields.get('extra_special_tokens'), list):
        out['additional_special_tokens'] = out.pop('extra_special_tokens')
    if fields.get('tokenizer_class') == 'TokenizersBackend':
        out['tokenizer_class'] = 'Qwen2Tokenizer'
    return out


def _processor_for_both(fields: Mapping[str, Any], processor_class: str) -> dict[str, Any]:
    """Fields of `preprocessor_config.json` that transformers 4 and 5 read."""
    size = fields.get('size') or {}
    bounds = {'min_pixels': size.get('shortest_edge'), 'max_pixels': size.get('longest_edge')}
    # transformers 4 takes its own bounds where these are missing.
    out = {name: value for name, value in bounds.items() if value is not None} | dict(fields)
    if str(fields.get('image_processor_type', '')).startswith('Qwen2VLImageProcessor'):
        out['image_processor_type'] = 'Qwen2VLImageProcessor'
        out.setdefault('processor_class', processor_class)
    return out


_MENDED: Mapping[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    TOKENIZER_FILE: _tokenizer_for_both, IMAGE_PROCESSOR_FILE: _processor_for_both}


def write_generation_config(directory: Path, end_ids: Sequence[int], pad_id: int) -> None:
    """Writes `generation_config.json`, unless it is there.

    Args:
      directory: of the checkpoint.
      end_ids: any of these ends a turn.
      pad_id: what batches are padded with.
    """
    _write(directory / GENERATION_FILE, {
        'do_sample': False, 'eos_token_id': list(end_ids), 'pad_token_id': pad_id})


def write_image_processor(
    directory: Path, settings: Mapping[str, Any], processor_class: str
) -> None:
    """Writes `preprocessor_config.json`, unless it is there.

    Args:
      directory: of the checkpoint.
      settings: a `Qwen2VLImageProcessor`'s, with `size`.
      processor_class: of transformers.
    """
    size = settings['size']
    _write(directory / IMAGE_PROCESSOR_FILE, {
        **settings, 'image_processor_type': 'Qwen2VLImageProcessor',
        'processor_class': processor_class,
        # transformers 4 reads these and ignores `size`.
        'min_pixels': size['shortest_edge'], 'max_pixels': size['longest_edge']})


def _write(file: Path, fields: Mapping[str, Any]) -> None:
    if not file.is_file():
        file.write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n')
