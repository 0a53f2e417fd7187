"""Python values as bytes and back, without pickle: what processes may send each other."""

import dataclasses
import enum
import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

_ALIGN = 64


def encode(value: Any, types: Sequence[type] = ()) -> bytes:
    """Writes a value as bytes.

    Args:
      value: None, bool, int, float, str, bytes, NumPy arrays and scalars of numbers, PIL
        images (grey, RGB, RGBA), and lists, tuples, dicts, dataclasses and enums of
        these. An array or image that stands at several places is written once.
      types: the dataclasses and enums that may occur.

    Returns:
      A JSON description of the value, then the bytes of its arrays.

    Raises:
      TypeError: for a value of another kind; names its place.
    """
    encoder = _Encoder(types)
    header = json.dumps(encoder.describe(value, 'value')).encode()
    parts = [len(header).to_bytes(8, 'little'), header]
    size = 8 + len(header)
    for part in encoder.blobs:
        padding = -size % _ALIGN
        parts += [bytes(padding), part]
        size += padding + len(part)
    return b''.join(parts)


def decode(data: bytes, types: Sequence[type] = ()) -> Any:
    """Reads what `encode` wrote, with the same types.

    Returns:
      An equal value; arrays are writeable.

    Raises:
      ValueError: if the bytes hold a type that is not among `types`.
    """
    length = int.from_bytes(data[:8], 'little')
    return _Decoder(data, 8 + length, types).build(json.loads(data[8 : 8 + length]))


class _Encoder:
    def __init__(self, types: Sequence[type]):
        self.blobs: list[bytes] = []
        self._types = {cls: _name(cls) for cls in types}
        # By identity; the values are kept, so that no identity is used twice.
        self._written: dict[int, tuple[Any, dict[str, Any]]] = {}

    def describe(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, enum.Enum) and type(value) in self._types:
            return {'enum': self._types[type(value)], 'name': value.name}
        if type(value) in self._types:
            fields = {f.name: self.describe(getattr(value, f.name), f'{path}.{f.name}')
                      for f in dataclasses.fields(value)}
            return {'dataclass': self._types[type(value)], 'fields': fields}
        if type(value) is list:
            return [self.describe(v, f'{path}[{i}]') for i, v in enumerate(value)]
        if type(value) is tuple:
            return {'tuple': [self.describe(v, f'{path}[{i}]') for i, v in enumerate(value)]}
        if type(value) is dict:
            return {'dict': [[self.describe(k, f'a key of {path}'),
                              self.describe(v, f'{path}[{k!r}]')] for k, v in value.items()]}
        if id(value) not in self._written:
            self._written[id(value)] = value, self._blob(value, path)
        return self._written[id(value)][1]

    def _blob(self, value: Any, path: str) -> dict[str, Any]:
        kind: dict[str, Any]
        if isinstance(value, bytes):
            kind, data = {'kind': 'bytes'}, value
        elif isinstance(value, (np.ndarray, np.generic)) and _has_name(value.dtype):
            array = np.ascontiguousarray(value)
            kind = {'kind': 'array' if isinstance(value, np.ndarray) else 'scalar',
                    'dtype': value.dtype.name, 'shape': list(value.shape)}
            data = array.tobytes()
        elif isinstance(value, Image.Image) and value.mode in ('L', 'RGB', 'RGBA'):
            kind = {'kind': 'image', 'mode': value.mode, 'size': list(value.size)}
            data = value.tobytes()
        else:
            raise TypeError(f'{path}: {type(value).__name__} cannot be sent to other processes')
        self.blobs.append(data)
        return {'blob': len(self.blobs) - 1, 'length': len(data), **kind}


class _Decoder:
    def __init__(self, data: bytes, start: int, types: Sequence[type]):
        self._data = memoryview(data)
        self._types = {_name(cls): cls for cls in types}
        self._end = start
        self._read: list[Any] = []

    def build(self, described: Any) -> Any:
        if isinstance(described, list):
            return [self.build(v) for v in described]
        if not isinstance(described, dict):
            return described
        if 'tuple' in described:
            return tuple(self.build(v) for v in described['tuple'])
        if 'dict' in described:
            return {self.build(k): self.build(v) for k, v in described['dict']}
        if 'enum' in described:
            return self._type(described['enum'])[described['name']]
        if 'dataclass' in described:
            cls = self._type(described['dataclass'])
            fields = {name: self.build(v) for name, v in described['fields'].items()}
            built = object.__new__(cls)
            for name, value in fields.items():
                object.__setattr__(built, name, value)
            return built
        # Blobs come in the order in which they were written; one of before is shared.
        if described['blob'] == len(self._read):
            self._read.append(self._blob(described))
        return self._read[described['blob']]

    def _type(self, name: str) -> Any:
        if name not in self._types:
            raise ValueError(f'{name} was sent, but only {sorted(self._types)} are expected')
        return self._types[name]

    def _blob(self, described: dict[str, Any]) -> Any:
        start = self._end + -self._end % _ALIGN
        self._end = start + described['length']
        data = self._data[start : self._end]
        if described['kind'] == 'bytes':
            return bytes(data)
        if described['kind'] == 'image':
            return Image.frombytes(described['mode'], tuple(described['size']), bytes(data))
        dtype, shape = jnp.dtype(described['dtype']), described['shape']
        array = np.frombuffer(data, dtype).reshape(shape).copy()
        return array if described['kind'] == 'array' else array[()]


def _has_name(dtype: np.dtype) -> bool:
    """Whether the name says it all: numbers in native byte order, also JAX's, not records."""
    if dtype.kind not in 'biufcV' or dtype.names is not None:
        return False
    try:
        return jnp.dtype(dtype.name) == dtype
    except TypeError:
        return False


def _name(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'
