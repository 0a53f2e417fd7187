"""The device mesh: data, fsdp, sequence and tensor axes over the devices of every process."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vrag_jax.parallel.sharding import with_rules

# Rows of a batch go over `data` and `fsdp`, their tokens over `sequence`; parameters over
# `fsdp` and `tensor`; see `sharding.RULES`.
AXES = ('data', 'fsdp', 'sequence', 'tensor')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices, and what is spread over them.

    Attributes:
      data, fsdp, sequence, tensor: devices along each axis; one of them may be -1 for
        the rest.
      learner_rules, sampler_rules: logical axes that are spread otherwise than
        `parallel.sharding.RULES` says, when learning and when sampling, e.g.
        `(('embed', ()), ('mlp', ('fsdp', 'tensor')))`.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    learner_rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    sampler_rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self):
        for changes in (self.learner_rules, self.sampler_rules):
            with_rules(changes)
            for name, axes in changes:
                if any(axis not in AXES for axis in axes):
                    raise ValueError(f'rule of {name!r}: {axes} must be some of {AXES}')

    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out along the axes `data`, `fsdp`, `sequence`, `tensor`.

    Neighbouring devices get neighbouring places on the last axis, `tensor`,
    which exchanges the most; GSPMD inserts the exchanges (the axes are `Auto`).

    Args:
      shape: devices along each axis; an axis left out is 1, and one may be -1,
        for all devices that remain.
      devices: which devices; all of `jax.devices()` by default.

    Returns:
      A mesh that uses every device once.

    Raises:
      ValueError: for an unknown axis, a size that is neither positive nor -1, a
        second -1, or sizes whose product is not the number of devices; the
        message names the field.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = resolve_shape(shape, len(devices))
    # An axis of the mesh may be a part of an axis of the torus, e.g. 32 x 2 of 4 x 4 x 4.
    laid_out = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_platform(device: jax.Device) -> str:
    """Returns what a device is programmed through: 'cpu', 'tpu', 'cuda', 'rocm'.

    JAX calls NVIDIA's and AMD's GPUs alike 'gpu' (`Device.platform`); their runtime, and the
    name of the card, tell them apart. A GPU of which neither says anything stays 'gpu'.
    """
    if device.platform not in ('gpu', 'cuda', 'rocm'):
        return device.platform
    said = (device.platform, device.client.platform, device.client.platform_version,
            device.device_kind)
    words = ' '.join(said).lower()
    for platform, marks in (('rocm', ('rocm', 'amd ', 'gfx')), ('cuda', ('cuda', 'nvidia'))):
        if any(mark in words for mark in marks):
            return platform
    return device.platform


def mesh_platform(mesh: Mesh | None) -> str:
    """Returns the `device_platform` of a mesh, or of the default device."""
    return device_platform(jax.devices()[0] if mesh is None else mesh.devices.flat[0])


def resolve_shape(shape: Mapping[str, int], device_count: int) -> dict[str, int]:
    """Fills in a mesh shape for a number of devices; see `make_mesh`.

    It touches no device, so a config can be checked for machines that are not
    at hand.

    Returns:
      Devices along each axis, in the order of `AXES`.
    """
    for axis in shape:
        if axis not in AXES:
            raise ValueError(f'mesh.{axis}: no such axis; there are {AXES}')
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f'mesh.{axis}: must be positive or -1, got {size}')
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise ValueError(f'mesh.{rest[1]}: only one axis may be -1, and mesh.{rest[0]} is')
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if rest:
        if device_count % fixed:
            raise ValueError(f'mesh.{rest[0]}: {device_count} devices cannot be divided by the '
                             f'{fixed} that the other axes of {sizes} take')
        sizes[rest[0]] = device_count // fixed
    elif fixed != device_count:
        widest = max(sizes, key=lambda axis: sizes[axis])
        raise ValueError(f'mesh.{widest}: the mesh {sizes} needs {fixed} devices, but there '
                         f'are {device_count}')
    return sizes
