"""The families of policies that there are, found by a checkpoint's `model_type` or a preset."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.policy import ImageSpec, PolicyFamily
from vrag_jax.models.qwen2_5_vl.family import QWEN2_5_VL
from vrag_jax.models.qwen2_vl.family import QWEN2_VL

_FAMILIES: dict[str, PolicyFamily] = {}


def register(family: PolicyFamily) -> None:
    """Makes a family known under its `model_type`, and its presets under their names.

    Raises:
      ValueError: if another family has one of the names.
    """
    for name in (family.model_type, *family.presets):
        for other in _FAMILIES.values():
            if name in (other.model_type, *other.presets) and other is not family:
                raise ValueError(f'{name!r} is taken by the family {other.model_type!r}')
    _FAMILIES[family.model_type] = family


for _family in (QWEN2_5_VL, QWEN2_VL):
    register(_family)


def family_of(config: ModelConfig) -> PolicyFamily:
    """Returns the family of a policy's sizes."""
    return _FAMILIES[config.model_type]


def image_spec(config: ModelConfig) -> ImageSpec:
    """Returns how a policy of these sizes takes images."""
    return family_of(config).images(config)


def is_vision(config: ModelConfig, paths: Iterable[str]) -> bool:
    """Whether any of these parameters belongs to the vision tower."""
    return any(re.search(family_of(config).vision, path) for path in paths)


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Reads a parsed `config.json` of any family.

    Raises:
      ValueError: if its `model_type` is of none, a field is null, or it asks for what the
        family does not do.
    """
    kind = config.get('model_type')
    if kind not in _FAMILIES:
        raise ValueError(f'model_type must be one of {tuple(_FAMILIES)}, got {kind!r}')
    return _FAMILIES[kind].from_hf(config)


def read_config(path: Path | str) -> ModelConfig:
    """Reads a HF `config.json`, or the one in a checkpoint directory."""
    path = Path(path)
    path = path / 'config.json' if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such model config')
    try:
        return config_from_hf(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def presets() -> dict[str, ModelConfig]:
    """Returns the sizes that have a name."""
    return {name: sizes for family in _FAMILIES.values() for name, sizes in family.presets.items()}


def preset(name: str, *, vocab_size: int | None = None, **special_ids: int) -> ModelConfig:
    """Returns the sizes of a published model, or of a tiny one.

    Args:
      name: one of `presets`.
      vocab_size: overrides the preset's; a tiny one has none of its own.
      **special_ids: overrides of `ModelConfig`'s token ids.

    Raises:
      ValueError: if the name is unknown, or a preset without a vocabulary is given none.
    """
    known = presets()
    if name not in known:
        raise ValueError(f'preset must be one of {tuple(known)}, got {name!r}')
    sizes = known[name]
    if vocab_size is not None:
        sizes = dataclasses.replace(
            sizes, text=dataclasses.replace(sizes.text, vocab_size=vocab_size))
    if not sizes.text.vocab_size:
        raise ValueError(f'preset {name!r} needs a vocab_size')
    return dataclasses.replace(sizes, **dict[str, Any](special_ids))


def needs_tokenizer(name: str) -> bool:
    """Whether a preset takes the vocabulary of the tokenizer that its run trains."""
    return not presets()[name].text.vocab_size
