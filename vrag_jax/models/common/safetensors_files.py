"""Writes safetensors files one tensor at a time, so that a file never has to fit into memory."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

# What the format calls the dtypes of parameters.
_DTYPES = {'bfloat16': 'BF16', 'float16': 'F16', 'float32': 'F32', 'float64': 'F64'}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes a file that `safetensors` reads; memory holds the tensor that is written.

    Format: 8 bytes, little-endian, with the length of a JSON header; the header, with the
    place of each tensor in what follows; the tensors, with nothing between them.

    Args:
      file: to write.
      specs: its tensors, in order.
      tensors: names and C-contiguous values, in the same order.

    Raises:
      ValueError: if a dtype has no name in the format, or a tensor is not as specified.
    """
    # transformers refuses files whose metadata does not name a framework.
    header: dict[str, dict] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for spec in specs:
        if spec.dtype.name not in _DTYPES:
            raise ValueError(f'{spec.name}: dtype must be one of {tuple(_DTYPES)}, '
                             f'got {spec.dtype.name}')
        start, end = end, end + spec.nbytes
        header[spec.name] = {'dtype': _DTYPES[spec.dtype.name], 'shape': list(spec.shape),
                             'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # The tensors begin at a multiple of 8.
    with open(file, 'wb') as opened:
        opened.write(len(text).to_bytes(8, 'little'))
        opened.write(text)
        for spec, (name, value) in zip(specs, tensors, strict=True):
            found = TensorSpec(name, value.dtype, value.shape)
            if found != spec:
                raise ValueError(f'{file}: expected {spec}, got {found}')
            opened.write(value.reshape(-1).view(np.uint8).data)
            del value  # Before the next is made.
