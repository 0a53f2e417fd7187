"""Config trees checked against frozen dataclasses, before anything heavy starts.

A config file returns an `ml_collections.ConfigDict`. Each of its sections is
the fields of a frozen dataclass of the room that uses it; what is missing takes
the dataclass's default. Names that do not exist, wrong types and impossible
values are errors that name the field.
"""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, Union

from ml_collections import ConfigDict

T = TypeVar('T')

# Fields of a config that were renamed, and what they are called now. Old names are refused with
# the new one: a run whose settings are not what its author thinks is worse than none.
RENAMED = {
    'config.learner': 'config.grpo.learner',
    'config.feature_rows': 'config.vision_features.rows',
    'config.feature_windows': 'config.vision_features.windows',
    'config.feature_span': 'config.vision_features.span',
    'config.sampler.page_size': 'config.sampler.block_size',
    **{f'config.{phase}.learner.{old}': f'config.{phase}.learner.{new}'
       for phase in ('pretrain', 'sft', 'grpo') for old, new in (
           ('fewer_rows', 'row_buckets'), ('fewer_windows', 'window_buckets'),
           ('shorter', 'length_buckets'))},
    'config.environment.allow_crop': "config.actions (without 'bbox' nothing is cropped)",
    'config.reward.alpha': 'config.reward.weights.retrieval',
    'config.reward.beta': 'config.reward.weights.answer',
    'config.reward.gamma': 'config.reward.weights.pattern',
    'config.reward.pattern_gate': "config.reward.gate ('pattern', or '' for none)",
}


class ConfigError(ValueError):
    """A config that cannot work; the message starts with the field's name."""


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Names the field of a config by which a file is given that cannot be read.

    Args:
      field: e.g. 'config.data.manifest'; OSErrors and ValueErrors become a `ConfigError` that
        starts with it.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f'{field}: {error}') from error


def unknown_field(path: str, known: Iterable[str]) -> str:
    """Returns what to say of a field that does not exist.

    Args:
      path: of the field, e.g. 'config.grpo.stepz'.
      known: fields of its section.
    """
    if path in RENAMED:
        return f'{path}: is called {RENAMED[path]} now'
    section = path.rpartition('.')[0]
    return f'{path}: no such field; in {section} there are {sorted(known) or "no fields"}'


def parse(cls: type[T], values: Mapping[str, Any], path: str = 'config') -> T:
    """Builds a dataclass from a mapping, recursively, checking names and types.

    Args:
      cls: a dataclass whose field types are bool, int, float, str, tuples of
        these, optional ones, one or the other of these, mappings, or dataclasses.
      values: a `ConfigDict` or dict.
      path: name of `values` in messages.

    Returns:
      The dataclass.

    Raises:
      ConfigError: for an unknown field, a wrong type, a missing field, or a
        value that the dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(typing.cast(Any, cls))
    names = {f.name: f for f in fields if f.init}
    for name in values:
        if name not in names:
            raise ConfigError(unknown_field(f'{path}.{name}', names))
    arguments = {}
    for name, field in names.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f'{path}.{name}')
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f'{path}.{name}: must be given')
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f'{path}: {error}') from error


def with_defaults(config: ConfigDict, cls: type) -> ConfigDict:
    """Fills in, in place, the fields that a config does not set, so that flags can name them.

    Args:
      config: of the fields of a dataclass; what does not fit is left for `parse` to refuse.
      cls: the dataclass.

    Returns:
      The config.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in config:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if field.init and default is not dataclasses.MISSING:
                config[field.name] = _as_config(default)
            continue
        hint, value = hints[field.name], config[field.name]
        if not isinstance(value, ConfigDict):
            continue
        if dataclasses.is_dataclass(hint):
            with_defaults(value, typing.cast(type, hint))
        elif typing.get_args(hint) and dataclasses.is_dataclass(typing.get_args(hint)[-1]):
            for section in value.values():  # A mapping of names to dataclasses.
                if isinstance(section, ConfigDict):
                    with_defaults(section, typing.get_args(hint)[-1])
    return config


def _as_config(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if all(f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
               for f in dataclasses.fields(value)) and value == type(value)():
            # What its fields say, not what it has made of that: others may be set beside it.
            return with_defaults(ConfigDict(), type(value))
        return ConfigDict({f.name: _as_config(getattr(value, f.name))
                           for f in dataclasses.fields(value) if f.init})
    if isinstance(value, Mapping):
        return ConfigDict({name: _as_config(item) for name, item in value.items()})
    return value


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:  # Of what only others know; they check it.
        return value
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        if value is None:
            if len(options) == len(typing.get_args(hint)):
                raise ConfigError(f'{path}: must not be None')
            return None
        errors = []
        for option in options:
            try:
                return _convert(option, value, path)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        raise ConfigError('; or '.join(map(str, errors)))
    is_mapping = origin is not None and issubclass(origin, Mapping)
    if dataclasses.is_dataclass(hint) or is_mapping:
        if not isinstance(value, Mapping) and not hasattr(value, 'to_dict'):
            raise ConfigError(f'{path}: expected a section, got {value!r}')
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ConfigError(f'{path}: expected a tuple, got {value!r}')
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise ConfigError(f'{path}: expected {len(kinds)} values, got {value!r}')
        return tuple(
            _convert(k, v, f'{path}[{i}]')
            for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if is_mapping:
        kind = typing.get_args(hint)[1]
        return {key: _convert(kind, value[key], f'{path}.{key}') for key in value}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f'{path}: expected {hint.__name__}, got {value!r}')
    return value
