"""Which process of how many this is: from the config, the environment, or the cluster."""

import dataclasses
import os
import re
from collections.abc import Mapping

# JAX asks these in this order, but `jax.distributed.initialize`, which does so, starts its
# service for one process, too, and refuses to run where there is no cluster.
from jax._src import clusters

CLUSTERS: dict[str, type[clusters.ClusterEnv]] = {
    'ompi': clusters.OmpiCluster, 'slurm': clusters.SlurmCluster,
    'mpi4py': clusters.Mpi4pyCluster, 'gcetpu': clusters.GceTpuCluster,
    'gketpu': clusters.GkeTpuCluster, 'k8s': clusters.K8sCluster}
COORDINATOR, PROCESSES, PROCESS, LOCAL_DEVICES = (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'JAX_LOCAL_DEVICE_IDS')
# Number and index of processes as launchers give them; what a coordinator lacks is
# taken from here: Open MPI, MPICH and Intel MPI, SLURM, Indexed Jobs.
_LAUNCHERS = (
    ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'), ('PMI_SIZE', 'PMI_RANK'),
    ('SLURM_NTASKS', 'SLURM_PROCID'), ('', 'JOB_COMPLETION_INDEX'))


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find and watch each other.

    What is left open here is taken from the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_LOCAL_DEVICE_IDS,
    then from the cluster.

    Attributes:
      cluster: 'auto', 'none' (one process, whatever the environment says), or how JAX is
        to look for the others: 'slurm', 'ompi' (Open MPI up to 4), 'mpi4py' (any MPI; not
        part of 'auto'), 'gketpu', 'gcetpu' (TPU VMs), 'k8s' (an Indexed Job or JobSet;
        needs the package kubernetes).
      coordinator: 'HOST:PORT' at which process 0 is reached by all; '' for found out.
      processes: how many there are; 0 for found out.
      process: index of this one; -1 for found out.
      local_devices: which GPUs of the host are this process'; all if it is the only one
        there, else the one of its index on the host.
      heartbeat_s: a process that is not heard of for so many seconds is dead, and ends
        the others.
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


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process in a run of several.

    Attributes:
      coordinator: 'HOST:PORT' of process 0.
      processes: how many there are, at least 2.
      process: index of this one.
      local_devices: indices of its GPUs; None for all that it sees.
      source: where this comes from, for people to read.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None
    source: str


def find_place(config: DistributedConfig) -> Place | None:
    """Finds out which process this is; touches no device.

    Returns:
      The place; None where there is one process only.

    Raises:
      ValueError: if something is missing, malformed or contradictory; names the field or
        the environment variable.
    """
    if config.cluster == 'none':
        return None
    environment = os.environ
    coordinator = config.coordinator or environment.get(COORDINATOR, '')
    processes = config.processes or _number(environment, PROCESSES, 1) or 0
    process = config.process
    if process < 0:
        process = _or(_number(environment, PROCESS, 0), -1)
    explicit = bool(coordinator or processes or process >= 0)
    local = config.local_devices or _devices(environment) or None
    source = 'explicit settings'
    if not (coordinator and processes and process >= 0):
        name = _detect(config.cluster)
        if name:
            source = name
            try:
                cluster = CLUSTERS[name]
                processes = processes or cluster.get_process_count()
                if processes == 1:
                    return None
                coordinator = coordinator or cluster.get_coordinator_address(
                    config.start_timeout_s, environment.get('JAX_COORDINATOR_PORT'))
                process = cluster.get_process_id() if process < 0 else process
                device = cluster.get_local_process_id()
            except (AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
                raise ValueError(f'cluster: JAX found {name!r}, but not all that it needs: '
                                 f'{_name_and_text(error)}') from error
            if device is not None and not _alone_on_host(environment, name, processes):
                local = local or (device,)
        elif explicit:
            processes, process = _from_launcher(environment, processes, process)
        else:
            return None
    if processes == 1:
        return None
    _check(coordinator, processes, process)
    return Place(coordinator, processes, process, local, source)


def _detect(name: str) -> str:
    """Returns the name of the cluster where this runs; '' outside."""
    for candidate, cluster in CLUSTERS.items():
        if name == 'auto':
            # A pod that is no part of an Indexed Job is on its own, and JAX raises there.
            alone = candidate == 'k8s' and 'JOB_COMPLETION_INDEX' not in os.environ
            if cluster.opt_in_only_method or alone:
                continue
        elif candidate != name:
            continue
        try:
            if cluster.is_env_present():
                return candidate
        except OSError as error:
            raise ValueError(f"cluster: JAX cannot find out whether this is {candidate!r}; with "
                             f"'none' one process runs: {_name_and_text(error)}") from error
    if name != 'auto':
        raise ValueError(f'cluster: JAX finds no {name!r} here')
    return ''


def _alone_on_host(environment: Mapping[str, str], cluster: str, processes: int) -> bool:
    """Whether all devices that this process sees are its own.

    JAX gives every process of SLURM and MPI one device, which would leave seven of eight
    GPUs idle in a run with one process a host. Where the launcher has already bound one
    GPU to each process, an index on the host would point beyond it.
    """
    if len(environment.get('CUDA_VISIBLE_DEVICES', ',').split(',')) == 1:
        return True
    if cluster == 'slurm':
        return environment.get('SLURM_STEP_NUM_NODES') == str(processes)
    return environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'


def _from_launcher(environment: Mapping[str, str], processes: int,
                   process: int) -> tuple[int, int]:
    for size, rank in _LAUNCHERS:
        if rank in environment:
            processes = processes or (_number(environment, size, 1) or 0 if size else 0)
            return processes, _or(_number(environment, rank, 0), -1) if process < 0 else process
    return processes, process


def _check(coordinator: str, processes: int, process: int) -> None:
    if not processes:
        raise ValueError(f'processes: set it or {PROCESSES}; how many there are is not known')
    if not coordinator:
        raise ValueError(f'coordinator: set it or {COORDINATOR} to HOST:PORT of process 0')
    _check_address('coordinator' if coordinator != os.environ.get(COORDINATOR) else COORDINATOR,
                   coordinator)
    if process < 0:
        raise ValueError(f'process: set it or {PROCESS}; which of {processes} processes this '
                         'is, is not known')
    if process >= processes:
        raise ValueError(f'process: must be below the number of processes, {processes}, '
                         f'got {process} (see also {PROCESS} and {PROCESSES})')


def _check_address(name: str, address: str) -> None:
    match = re.fullmatch(r'(\[[^\]]+\]|[^:\s]+):(\d{1,5})', address)
    if not match or not 0 < int(match[2]) < 65536:
        raise ValueError(f'{name}: expected HOST:PORT, got {address!r}')


def _number(environment: Mapping[str, str], name: str, least: int) -> int | None:
    text = environment.get(name, '')
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f'{name}: expected a whole number from {least}, got {text!r}')
    return int(text)


def _devices(environment: Mapping[str, str]) -> tuple[int, ...]:
    text = environment.get(LOCAL_DEVICES, '')
    if not re.fullmatch(r'(\d+(,\d+)*)?', text):
        raise ValueError(f'{LOCAL_DEVICES}: expected numbers with commas, got {text!r}')
    return tuple(map(int, text.split(','))) if text else ()


def _name_and_text(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
