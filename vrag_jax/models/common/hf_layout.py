"""Tensor names, shapes and order of a HF checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_CHUNK_BYTES = 2**21  # Read at once: still in the processor's cache when it is transposed.
_BLOCK = 16  # Rows transposed at once.


@dataclasses.dataclass(frozen=True)
class WeightLayout:
    """Names and shapes of a model's tensors.

    A parameter that ends in `kernel` is stored transposed; one of stacked layers is a tensor
    a layer.

    Attributes:
      tensor_name: path of a parameter -> name of its tensor, `{}` for the layer.
      published_name: name of a tensor in any file -> the one that `tensor_name` gives.
      convolutions: shapes of the tensors of kernels, by path, that are stored with more than
        two dimensions.
    """

    tensor_name: Callable[[str], str]
    published_name: Callable[[str], str] = str
    convolutions: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def layers(self, path: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
        """Returns the tensors that make up a parameter: name and layer (None if not stacked)."""
        name = self.tensor_name(path)
        if '{}' not in name:
            return [(name, None)]
        return [(name.format(layer), layer) for layer in range(shape[0])]

    def expected_shapes(self, shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a checkpoint's tensors by their published names.

        Args:
          shapes: parameters or `ShapeDtypeStruct`s, by path.
        """
        return {name: self._shape(path, leaf.shape if layer is None else leaf.shape[1:])
                for path, leaf in shapes.items() for name, layer in self.layers(path, leaf.shape)}

    def to_tensor(self, path: str, value: np.ndarray) -> np.ndarray:
        """Returns a tensor as a checkpoint holds it, its bytes in the order of its shape.

        Args:
          path: of the parameter.
          value: the parameter, or one layer of it.
        """
        shape = self._shape(path, value.shape)
        if _is_kernel(path):
            transposed = np.empty(value.shape[::-1], value.dtype)
            _transpose(value, transposed)
            value = transposed
        return np.ascontiguousarray(value).reshape(shape)

    def _shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a tensor, from that of its parameter (without the layer axis)."""
        if path in self.convolutions:
            return self.convolutions[path]
        return shape[::-1] if _is_kernel(path) else shape


def read_slice(path: str, tensor: Any, index: tuple[slice, ...], out: np.ndarray) -> None:
    """Reads a slice of a parameter, or of one layer of it, out of its tensor.

    Args:
      path: of the parameter.
      tensor: as the checkpoint holds it; reads what it is indexed with.
      index: of the slice in the parameter (without the layer axis); steps are 1.
      out: the slice is written here, in this array's dtype.
    """
    if len(tensor.get_shape()) > 2:  # A convolution that takes a patch as a whole.
        rows, columns = index
        whole = tensor[columns]
        _transpose(whole.reshape(len(whole), -1)[:, rows], out)
        return
    kernel = _is_kernel(path)
    index, stored = (index[::-1], out.T) if kernel else (index, out)
    start = index[0].start or 0
    step = max(1, _CHUNK_BYTES // max(1, stored[:1].nbytes))
    for at in range(0, len(stored), step):
        end = min(at + step, len(stored))
        chunk = tensor[(slice(start + at, start + end), *index[1:])]
        if kernel:
            _transpose(chunk, out[:, at:end])
        else:
            out[at:end] = chunk


def _is_kernel(path: str) -> bool:
    return path.endswith('/kernel')


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Writes the transposed matrix, in blocks that stay in the processor's cache.

    Several times as fast as numpy's own copy of a large transposed array; kernels are
    nearly all of a checkpoint.
    """
    for start in range(0, len(matrix), _BLOCK):
        out[:, start : start + _BLOCK] = matrix[start : start + _BLOCK].T
