"""Mesh shapes: filled in, or refused with the name of the field."""

from types import SimpleNamespace

import jax
import pytest

from vrag_jax.parallel.mesh import AXES, device_platform, make_mesh, mesh_platform, resolve_shape


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
    from vrag_jax.planning.chips import topology_devices

    mesh = make_mesh({'fsdp': 32, 'tensor': 2}, topology_devices('v5p:4x4x4'))
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 32, 'sequence': 1, 'tensor': 2}
    # Both of `tensor` are neighbours in the torus.
    for pair in mesh.devices.reshape(32, 2):
        one, other = (device.coords for device in pair)
        steps = [min(abs(a - b), 4 - abs(a - b)) for a, b in zip(one, other, strict=True)]
        assert sum(steps) == 1


@pytest.mark.parametrize(('platform', 'client', 'version', 'kind', 'expected'), [
    # As JAX shows the devices of its CUDA and ROCm plugins, and as older ones named them.
    ('gpu', 'cuda', 'PJRT C API\ncuda 12090', 'NVIDIA H100 80GB HBM3', 'cuda'),
    ('gpu', 'gpu', 'cuda 12030', 'Tesla V100-SXM2-16GB', 'cuda'),
    ('gpu', 'rocm', 'PJRT C API\nrocm 60400', 'AMD Instinct MI300X', 'rocm'),
    ('gpu', 'gpu', 'rocm 60000', 'gfx942', 'rocm'),
    ('rocm', 'rocm', '', '', 'rocm'), ('cuda', 'cuda', '', '', 'cuda'),
    ('gpu', 'sycl', '', 'Intel Data Center GPU Max', 'gpu'),
    ('tpu', 'tpu', 'PJRT C API\nTFRT TPU v5', 'TPU v5', 'tpu'),
])
def test_gpus_of_cuda_and_rocm_are_told_apart(platform, client, version, kind, expected):
    device = SimpleNamespace(
        platform=platform, device_kind=kind,
        client=SimpleNamespace(platform=client, platform_version=version))
    assert device_platform(device) == expected


def test_the_platform_of_a_mesh_is_that_of_its_devices():
    assert mesh_platform(make_mesh({'data': -1})) == mesh_platform(None) == 'cpu'
