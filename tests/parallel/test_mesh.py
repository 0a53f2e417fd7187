"""Mesh shapes: filled in, or refused with the name of the field."""

import jax
import pytest

from vrag_jax.parallel.mesh import AXES, make_mesh, resolve_shape


@pytest.mark.parametrize('shape, devices, expected', [
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, 8, (2, 2, 1, 2)),
    ({'data': -1, 'fsdp': 2, 'tensor': 1}, 8, (4, 2, 1, 1)),
    ({'data': 1, 'fsdp': -1, 'tensor': 4}, 8, (1, 2, 1, 4)),
    ({'tensor': -1}, 6, (1, 1, 1, 6)),
    ({'data': -1, 'fsdp': 8}, 8, (1, 8, 1, 1)),
    ({'sequence': 4, 'fsdp': -1}, 8, (1, 2, 4, 1)),
    ({}, 1, (1, 1, 1, 1)),
])
def test_shapes_that_fit(shape, devices, expected):
    assert resolve_shape(shape, devices) == dict(zip(AXES, expected, strict=True))


@pytest.mark.parametrize('shape, devices, message', [
    ({'model': 2}, 2, r'mesh\.model: no such axis'),
    ({'fsdp': 0}, 2, r'mesh\.fsdp: must be positive or -1, got 0'),
    ({'tensor': -2}, 2, r'mesh\.tensor: must be positive or -1, got -2'),
    ({'data': -1, 'tensor': -1}, 2, r'mesh\.tensor: only one axis may be -1, and mesh\.data is'),
    ({'data': -1, 'tensor': 3}, 8, r'mesh\.data: 8 devices cannot be divided by the 3'),
    ({'data': -1, 'fsdp': 16}, 8, r'mesh\.data: 8 devices cannot be divided by the 16'),
    ({'data': 2, 'fsdp': 8}, 8, r'mesh\.fsdp: .* needs 16 devices, but there are 8'),
    ({'data': 2}, 8, r'mesh\.data: .* needs 2 devices, but there are 8'),
])
def test_shapes_that_do_not_fit(shape, devices, message):
    with pytest.raises(ValueError, match=message):
        resolve_shape(shape, devices)


def test_mesh_over_chosen_devices():
    mesh = make_mesh({'data': -1}, devices=jax.devices()[:1])
    assert mesh.axis_names == AXES and dict(mesh.shape) == dict.fromkeys(AXES, 1)
    assert list(mesh.devices.flat) == jax.devices()[:1]


def test_axes_that_are_parts_of_an_axis_of_the_torus():
    pytest.importorskip('libtpu')
    from vrag_jax.compilation.chips import topology_devices

    mesh = make_mesh({'fsdp': 32, 'tensor': 2}, topology_devices('v5p:4x4x4'))
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 32, 'sequence': 1, 'tensor': 2}
    # Both of `tensor` are neighbours in the torus.
    for pair in mesh.devices.reshape(32, 2):
        one, other = (device.coords for device in pair)
        steps = [min(abs(a - b), 4 - abs(a - b)) for a, b in zip(one, other, strict=True)]
        assert sum(steps) == 1
