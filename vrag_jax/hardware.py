"""Finds the hardware before JAX is imported, and sets what a CPU-only run needs.

On a CPU the buffers of a step are memory of the process, given back and asked for anew again
and again, which costs up to half of the time. Kept, and in huge pages, they cost nothing.
glibc reads how it allocates before Python starts, so Python is started once more.
"""

import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLES = ('glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:'
            'glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864')
# Set by clusters that have TPUs, or for Pathways; libtpu sets others of the name TPU_... itself.
_ELSEWHERE = ('JAX_BACKEND_TARGET', 'TPU_ACCELERATOR_TYPE', 'TPU_WORKER_HOSTNAMES', 'TPU_WORKER_ID')
_GOOGLE = '0x1ae0'  # PCI vendor id.


def settle() -> None:
    """Settles how this process runs; called before JAX is imported, by the main module alone.

    On CPUs alone, unless the environment says otherwise: JAX is told to look for nothing else
    (libtpu, where it is installed, would complain that there is no TPU), and the process becomes
    one of the same command, id and environment with `GLIBC_TUNABLES` set. On anything else
    nothing is changed.
    """
    if not only_cpus(os.environ):
        return
    if not os.environ.get('JAX_PLATFORMS'):
        os.environ['JAX_PLATFORMS'] = 'cpu'
    if 'GLIBC_TUNABLES' in os.environ or not has_glibc() or not sys.executable:
        return
    os.environ['GLIBC_TUNABLES'] = TUNABLES
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        logging.getLogger(__name__).warning(
            '%s cannot be started again (%s): steps on a CPU are slower without GLIBC_TUNABLES=%s',
            sys.executable, error, TUNABLES)


def only_cpus(environment: Mapping[str, str], root: Path = Path('/')) -> bool:
    """Whether JAX will find nothing but CPUs, as far as that is certain.

    Args:
      environment: variables; what JAX_PLATFORMS says goes.
      root: below which devices are looked for.
    """
    platforms = environment.get('JAX_PLATFORMS') or environment.get('JAX_PLATFORM_NAME')
    if platforms:
        return set(platforms.split(',')) == {'cpu'}
    if any(environment.get(name) for name in _ELSEWHERE):
        return False
    return not has_plugin() and not has_tpu(root)


def has_plugin() -> bool:
    """Whether a package is installed that brings JAX to other devices: CUDA, ROCm, others."""
    return (importlib.util.find_spec('jax_plugins') is not None
            or bool(importlib.metadata.entry_points(group='jax_plugins')))


def has_tpu(root: Path) -> bool:
    """Whether the machine has TPU chips, as `launch/accelerator.sh` looks for them."""
    if any(root.glob('dev/accel[0-9]*')):
        return True
    vendors = root.glob('sys/bus/pci/devices/*/vendor')
    return any(root.glob('dev/vfio/[0-9]*')) and any(
        file.read_text().strip() == _GOOGLE for file in vendors)


def has_glibc() -> bool:
    """Whether the C library is glibc, which Linux has, but not all of it."""
    try:
        return (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc')
    except (AttributeError, OSError, ValueError):
        return False
