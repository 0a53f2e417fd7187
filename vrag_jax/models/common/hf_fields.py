"""Fields of HF's config.json: defaults, aliases, and what is not supported."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

C = TypeVar('C')

# What transformers' classes take for a field that a config leaves out, the same in every
# version since 4.49.
_TEXT_DEFAULTS: dict[str, Any] = {
    'vocab_size': 152064, 'hidden_size': 8192, 'intermediate_size': 29568,
    'num_hidden_layers': 80, 'num_attention_heads': 64, 'num_key_value_heads': 8,
    'max_position_embeddings': 32768, 'rms_norm_eps': 1e-5}
_ROPE_DEFAULTS: dict[str, Any] = {'rope_theta': 1000000.0, 'mrope_section': (16, 24, 24)}
_YARN_FIELDS = ('factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow',
                'attention_factor', 'truncate')


def of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the decoder, by the names of `TextConfig`, and whatever else there is.

    Args:
      config: a parsed file, see `ModelConfig.from_hf`.

    Returns:
      Also `yarn`, the fields of `YarnConfig`, or None.

    Raises:
      ValueError: if a field is null or asks for what is not supported; names it.
    """
    given = {**config, **(config.get('text_config') or {})}
    if given.get('num_key_value_heads', 0) is None:
        given['num_key_value_heads'] = given.get('num_attention_heads')
    text = filled(_TEXT_DEFAULTS, given, 'the decoder')
    rope = {name: given[name] for name in ('rope_theta',) if name in given}
    rope = filled(_ROPE_DEFAULTS, {**rope, **(text.get('rope_scaling') or {}),
                                    **(text.get('rope_parameters') or {})}, 'the decoder')
    refuse_activation('hidden_act', text, 'silu')
    _refuse_sliding_windows(text)
    # Tying is a fact of the whole model; old files state it for the decoder.
    tied = bool(config.get('tie_word_embeddings') or text.get('tie_word_embeddings'))
    return {**text, **rope, 'tie_word_embeddings': tied, 'yarn': _yarn(rope, text)}


def refuse_activation(name: str, section: Mapping[str, Any], known: str) -> None:
    """Raises a `ValueError` if a section asks for another activation than the one known."""
    if section.get('hidden_act', known) != known:
        raise ValueError(f"{name} must be {known!r}, got {section['hidden_act']!r}")


def _refuse_sliding_windows(text: Mapping[str, Any]) -> None:
    """Raises if a layer does not see all of a sequence that there are positions for."""
    window = text.get('sliding_window', 4096)
    if not text.get('use_sliding_window') or window is None:
        return
    layers = text['num_hidden_layers']
    # As transformers has it: from this layer on.
    sliding = max(0, layers - text.get('max_window_layers', 80))
    if text.get('layer_types'):
        sliding = text['layer_types'].count('sliding_attention')
    if sliding and window < text['max_position_embeddings']:
        raise ValueError(
            f'use_sliding_window: {sliding} of {layers} layers see the last {window} tokens only, '
            'which is not supported; set use_sliding_window to false if no sequence of the run '
            f'is longer than {window}: nothing changes then')


def _yarn(rope: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The YaRN of a HF config, as the newest transformers reads it."""
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind in ('default', 'mrope'):
        return None
    if kind != 'yarn':
        raise ValueError(
            f"the rotary type must be 'default', 'mrope' or 'yarn', got {kind!r}: take "
            'rope_scaling back to the published one if no sequence of the run is longer than '
            'the model was trained on')
    yarn = {name: rope[name] for name in _YARN_FIELDS if rope.get(name) is not None}
    yarn.setdefault('original_max_position_embeddings', text['max_position_embeddings'])
    factor = yarn.get('factor')
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1:
        raise ValueError(f"rope_scaling of type 'yarn': factor must be at least 1, got {factor!r}")
    scales = [rope.get(name) or 0.0 for name in ('mscale', 'mscale_all_dim')]
    if 'attention_factor' not in yarn and all(scales):
        above, below = (0.1 * scale * math.log(factor) + 1 for scale in scales)
        yarn['attention_factor'] = above / below
    return yarn


def filled(defaults: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of a HF config, with defaults for those that are left out.

    Raises:
      ValueError: if a field that has a default is null; names it and `where` it stands.
    """
    for name in defaults:
        if name in fields and fields[name] is None:
            raise ValueError(f'{where}: field {name!r} is null')
    return {**defaults, **fields}


def build(cls: type[C], fields: Mapping[str, Any]) -> C:
    """Builds a config dataclass from those of a HF config's fields that it has."""
    values = {field.name: fields[field.name] for field in dataclasses.fields(cls)  # type: ignore
              if field.name in fields}
    return cls(**{name: tuple(value) if isinstance(value, list) else value
                  for name, value in values.items()})
