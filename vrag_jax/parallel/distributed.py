"""Runs of several processes: how they find each other, wait for each other and end together."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from vrag_jax import hardware

CLUSTERS = ('slurm', 'ompi', 'mpi4py', 'gketpu', 'gcetpu', 'k8s')
# Number of processes and index of this one, as launchers give them. JAX reads neither where the
# coordinator is given, and does not know MPICH, Intel MPI and Open MPI from 5 on.
_LAUNCHERS = (
    ('SLURM_NTASKS', 'SLURM_PROCID'), ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
    ('PMI_SIZE', 'PMI_RANK'), ('', 'JOB_COMPLETION_INDEX'))
_WEEK_MS = 7 * 24 * 3600 * 1000
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find and watch each other.

    What is left open here is taken from the environment variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_LOCAL_DEVICE_IDS, then from the cluster.

    Attributes:
      cluster: 'auto', 'none' (one process, whatever the environment says), or how JAX is
        to look for the others: 'slurm', 'ompi' (Open MPI up to 4), 'mpi4py' (any MPI; not
        part of 'auto'), 'gketpu', 'gcetpu' (TPU VMs), 'k8s' (an Indexed Job or JobSet;
        needs the package kubernetes).
      coordinator: 'HOST:PORT' at which all processes reach process 0; '' to find it out.
      processes: how many there are; 0 to find it out.
      process: index of this one; -1 to find it out.
      local_devices: which GPUs of the host are this process'; all if it is the only one
        there, else the one of its index on the host.
      heartbeat_s: a process that is not heard of for so many seconds is dead, and the
        others end. One that has failed waits as long for the others before it leaves.
      start_timeout_s: how long the processes wait for each other at the start.
    """

    cluster: str = 'auto'
    coordinator: str = ''
    processes: int = 0
    process: int = -1
    local_devices: tuple[int, ...] = ()
    heartbeat_s: int = 30
    start_timeout_s: int = 300

    def __post_init__(self):
        if self.cluster not in ('auto', 'none', *CLUSTERS):
            raise ValueError(f"cluster: must be 'auto', 'none' or one of {CLUSTERS}, "
                             f'got {self.cluster!r}')
        if self.coordinator:
            _check_address('coordinator', self.coordinator)
        for field, least in (('processes', 0), ('process', -1), ('heartbeat_s', 2),
                             ('start_timeout_s', 1)):
            if getattr(self, field) < least:
                raise ValueError(f'{field}: must be at least {least}, got {getattr(self, field)}')
        if any(device < 0 for device in self.local_devices):
            raise ValueError(f'local_devices: must not be negative, got {self.local_devices}')


@contextlib.contextmanager
def processes(config: DistributedConfig) -> Iterator[None]:
    """Joins the processes of a run; a context manager around all that touches a device.

    Where there is one process it does nothing. Otherwise, at a good end, every process waits
    for all others. If one dies, or ends with an exception, which it prints, JAX's coordination
    service ends the others: within `heartbeat_s` or little more, and with a status that is not 0.

    Raises:
      SystemExit: if the settings cannot work, or not all processes have come in time; names the
        field or variable.
    """
    joined = _join(config)
    yield
    if joined:
        barrier('end')


def _join(config: DistributedConfig) -> bool:
    try:
        place = find_place(config)
        if place is None:
            return False
        # The service would hold SIGTERM back, and a process that is told to end would go on
        # until it is killed.
        jax.config.update('jax_enable_preemption_service', False)
        # Of the CPU client only: beside each other, programs of a device may take the threads
        # on which a collective with another process waits for its own.
        jax.config.update('jax_cpu_enable_async_dispatch', False)
        # A process that fails waits for the others to shut down, too, and after the time-out
        # they are told.
        jax.distributed.initialize(
            **place, initialization_timeout=config.start_timeout_s,
            heartbeat_timeout_seconds=config.heartbeat_s,
            shutdown_timeout_seconds=config.heartbeat_s)
    except (AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f'config.distributed: {type(error).__name__}: {" ".join(str(error).split())}; '
                 "with cluster='none' one process runs")
    if not place['local_device_ids'] and _alone_on_host():
        # Of SLURM and Open MPI JAX gives every process one GPU.
        jax.config.update('jax_cuda_visible_devices', 'all')
        jax.config.update('jax_rocm_visible_devices', 'all')
    return True


def find_place(config: DistributedConfig) -> dict[str, Any] | None:
    """Finds out which process this is, as far as JAX does not; touches no device.

    Returns:
      Arguments of `jax.distributed.initialize`, None for what it is to find out; None where
      this is the only process.

    Raises:
      ValueError: if something is missing, malformed or contradictory; names the field or the
        environment variable.
    """
    if config.cluster == 'none':
        return None
    coordinator = config.coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS') or None
    size, rank = next((names for names in _LAUNCHERS if names[1] in os.environ), ('', ''))
    count = config.processes or _number('JAX_NUM_PROCESSES', 1)
    process = config.process if config.process >= 0 else _number('JAX_PROCESS_ID', 0)
    method = None if config.cluster == 'auto' else config.cluster
    if (count or _number(size, 1)) == 1:
        return None
    if coordinator:
        _check_address('coordinator or JAX_COORDINATOR_ADDRESS', coordinator)
        count = count or _number(size, 1)
        process = _number(rank, 0) if process is None else process
        method = 'deactivate'
        if count is None:
            raise ValueError('processes: set it or JAX_NUM_PROCESSES; how many there are is not '
                             'known')
        if process is None:
            raise ValueError(f'process: set it or JAX_PROCESS_ID; which of {count} processes this '
                             'is, is not known')
    elif not (method or _has_launcher()):
        if count or process is not None:
            raise ValueError('coordinator: set it or JAX_COORDINATOR_ADDRESS to HOST:PORT of '
                             'process 0')
        return None
    if process is not None and count and process >= count:
        raise ValueError(f'process: must be below the number of processes, {count}, got {process} '
                         '(see also JAX_PROCESS_ID and JAX_NUM_PROCESSES)')
    return {'coordinator_address': coordinator, 'num_processes': count, 'process_id': process,
            'local_device_ids': config.local_devices or _local_devices() or None,
            'cluster_detection_method': method}


def _has_launcher() -> bool:
    """Whether a launcher by which JAX finds the others has started this process.

    JAX itself refuses to run where there is none, and a pod of no Indexed Job.
    """
    environment = os.environ
    if 'SLURM_STEP_NODELIST' in environment or 'OMPI_MCA_orte_hnp_uri' in environment:
        return True
    if 'JOB_COMPLETION_INDEX' in environment and importlib.util.find_spec('kubernetes'):
        return True
    return (not hardware.only_cpus(environment) and hardware.has_tpu(Path('/'))
            and importlib.util.find_spec('libtpu') is not None)


def _alone_on_host() -> bool:
    """Whether all GPUs that this process sees are its own.

    That is so where the launcher has already bound one GPU to each process, too: an index on
    the host would point beyond it.
    """
    environment = os.environ
    if len(environment.get('CUDA_VISIBLE_DEVICES', ',').split(',')) == 1:
        return True
    if 'SLURM_STEP_NUM_NODES' in environment:
        return environment['SLURM_STEP_NUM_NODES'] == environment.get('SLURM_NTASKS')
    return environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'


def is_main() -> bool:
    """Whether this is process 0, which alone writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have come here, however long that takes.

    All processes have to make the same calls of this module in the same order, each from one
    thread.

    Args:
      name: of the place in the program.

    Raises:
      RuntimeError: in all processes, if they wait at places of different names.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # Takes a second, for nothing in most runs.

    # Collectives of devices give up sooner than a rollout may take.
    multihost.get_barrier_sync_fn()(
        key=f'vrag_jax barrier {next(_barriers)}', timeout_ms=_WEEK_MS)
    try:
        multihost_utils.sync_global_devices(name)
    except AssertionError as error:
        raise RuntimeError(f'the processes are not in step; this one is at {name!r}') from error


def _check_address(name: str, address: str) -> None:
    match = re.fullmatch(r'(\[[^\]]+\]|[^:\s]+):(\d{1,5})', address)
    if not match or not 0 < int(match[2]) < 65536:
        raise ValueError(f'{name}: expected HOST:PORT, got {address!r}')


def _number(name: str, least: int) -> int | None:
    """Reads an environment variable; None where it is not set."""
    text = os.environ.get(name, '')
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f'{name}: expected a whole number from {least}, got {text!r}')
    return int(text)


def _local_devices() -> tuple[int, ...]:
    text = os.environ.get('JAX_LOCAL_DEVICE_IDS', '')
    if not re.fullmatch(r'(\d+(,\d+)*)?', text):
        raise ValueError(f'JAX_LOCAL_DEVICE_IDS: expected numbers with commas, got {text!r}')
    return tuple(map(int, text.split(','))) if text else ()
