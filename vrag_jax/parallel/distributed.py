"""Runs of several processes: starting them, and what they tell each other."""

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

# The coordination service's client has no public name; Orbax takes it from here, too.
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from vrag_jax.parallel.cluster import DistributedConfig, Place, find_place
from vrag_jax.parallel.encoding import decode, encode
from vrag_jax.parallel.liveness import WEEK_MS, Watchdog, exit_now

T = TypeVar('T')

_NAMES = 'vrag_jax/host'
# What an exchange may take of each device's memory at a time.
_DEVICE_BYTES = 64 * 2**20
_SMALLEST_CHUNK = 2**12
_steps = itertools.count()


@contextlib.contextmanager
def processes(config: DistributedConfig) -> Iterator[Place | None]:
    """Joins the processes of a run; a context manager around all that touches a device.

    Where there is one process it does nothing. Otherwise, at the end, every process waits
    for all others; an exception inside ends all of them, and so does the death of one:
    with a line on stderr that names it, and a status that is not 0 (see `Watchdog`). In
    that case this does not return, and nothing outside runs; nor does it if not all
    processes have come in time.

    Args:
      config: where the others are; what it leaves open is found out.

    Yields:
      The place of this process; None where there is only one.

    Raises:
      ValueError: if the settings are incomplete; names the field or variable.
      RuntimeError: if JAX has already touched a device.
    """
    place = find_place(config)
    if place is None:
        yield None
        return
    watchdog = _start(place, config)
    try:
        try:
            yield place
        except SystemExit as end:
            if end.code:
                raise
        watchdog.finish()
    except BaseException as error:
        watchdog.fail(error)


def _start(place: Place, config: DistributedConfig) -> Watchdog:
    # The service would hold SIGTERM back, and a process that is told to end would go on
    # until it is killed.
    jax.config.update('jax_enable_preemption_service', False)
    # At its own time-out JAX aborts the process, so ours comes first.
    missed = threading.Timer(config.start_timeout_s, _give_up, [place, config.start_timeout_s])
    missed.start()
    try:
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process, place.local_devices,
            cluster_detection_method='deactivate',
            initialization_timeout=config.start_timeout_s + 10,
            heartbeat_timeout_seconds=config.heartbeat_s)
        client: Any = global_state.client
        client.key_value_set(f'{_NAMES}/{place.process}', socket.gethostname())
        client.wait_at_barrier(_NAMES, WEEK_MS)
    finally:
        missed.cancel()
    hosts = {int(key.rpartition('/')[2]): host for key, host in client.key_value_dir_get(_NAMES)}
    names = [f'process {p} ({hosts[p]})' for p in range(place.processes)]
    logging.getLogger(__name__).info(
        '%s of %d, by %s; process 0 is at %s',
        names[place.process], place.processes, place.source, place.coordinator)
    return Watchdog(client, place.coordinator, place.process, names, config.heartbeat_s)


def _give_up(place: Place, seconds: int) -> None:
    host, _, port = place.coordinator.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), 5.0).close()
        reason = f'not all {place.processes} processes have come to {place.coordinator}'
    except OSError as error:
        reason = f'process 0 at {place.coordinator} is not reached: {error}'
    exit_now(f'process {place.process} of {place.processes} ({place.source}): after {seconds} s '
             f'{reason}', 1)


def is_main_process() -> bool:
    """Whether this is process 0, which alone writes what is written once; touches no device."""
    return global_state.process_id == 0


def barrier(name: str) -> None:
    """Waits until all processes have come here, however long that takes.

    It does not use the devices. All processes have to make the same calls of this module
    in the same order, each from one thread.

    Args:
      name: of the place in the program.

    Raises:
      RuntimeError: in all processes, if they wait at places of different names.
    """
    client = global_state.client
    if client is None:
        return
    step = next(_steps)
    client.key_value_set(_step_key(step, global_state.process_id), name)
    client.wait_at_barrier(f'vrag_jax/step/{step}', WEEK_MS)
    names = {int(key.rpartition('/')[2]): name
             for key, name in client.key_value_dir_get(_step_key(step))}
    if step:
        # All have read what belongs to the step before, or they were not here.
        client.key_value_delete(_step_key(step - 1, global_state.process_id))
    if len(set(names.values())) > 1:
        raise RuntimeError(f'the processes are not in step: {_who_has_what(names)}')


def exchange(value: T, name: str, types: Sequence[type] = ()) -> list[T]:
    """Gives every process the values of all.

    The bytes go through the devices' own network, so many at a time that a device's
    memory holds 64 MiB of them at most.

    Args:
      value: what this process gives; see `encode` for what can be given.
      name: of the place in the program, as for `barrier`.
      types: the dataclasses and enums that occur in it.

    Returns:
      The values in the order of the processes; this process' own one as it is, where
      there is no other.

    Raises:
      TypeError: if the value cannot be sent; names the place in it.
      RuntimeError: in all processes, if they are not in step.
    """
    if global_state.client is None:
        return [value]
    data = encode(value, types)
    barrier(name)
    return [decode(part, types) for part in _gather(data, _DEVICE_BYTES)]


def agree(value: Any, what: str) -> None:
    """Checks that a value is the same in all processes.

    Args:
      value: e.g. a digest of the config; see `encode`.
      what: its name in messages.

    Raises:
      ValueError: in all processes, if it differs; names them and their values.
    """
    if global_state.client is None:
        return
    values = dict(enumerate(exchange(value, f'agree on {what}')))
    if len({encode(v) for v in values.values()}) > 1:
        raise ValueError(f'{what} differs: {_who_has_what(values)}')


def _gather(data: bytes, device_bytes: int) -> list[bytes]:
    """Returns the bytes of every process, in the order of the processes."""
    count = jax.process_count()
    # In bytes, because JAX has no 64-bit integers unless asked.
    own = np.array([jax.process_index(), len(data)], np.int64).view(np.uint8)
    heads = np.asarray(multihost_utils.process_allgather(own)).view(np.int64)
    order = np.argsort(heads[:, 0])
    longest = int(heads[:, 1].max())
    # Powers of two, so that few programs are compiled.
    largest = max(_SMALLEST_CHUNK, 2 ** ((device_bytes // (2 * count)).bit_length() - 1))
    chunk = min(largest, max(_SMALLEST_CHUNK, 1 << (longest - 1).bit_length()))
    parts: list[list[bytes]] = [[] for _ in range(count)]
    for start in range(0, longest, chunk):
        piece = np.zeros(chunk, np.uint8)
        own = np.frombuffer(data[start : start + chunk], np.uint8)
        piece[: len(own)] = own
        rows = multihost_utils.process_allgather(piece)
        for part, row, length in zip(parts, rows, heads[:, 1], strict=True):
            if start < length:
                part.append(row[: length - start].tobytes())
    return [b''.join(parts[i]) for i in order]


def _step_key(step: int, process: int | str = '') -> str:
    return f'vrag_jax/step/{step}/{process}'


def _who_has_what(values: dict[int, Any]) -> str:
    """Returns e.g. 'processes 0, 2: 'a'; process 1: 'b''."""
    groups: dict[bytes, list[int]] = {}
    for process in sorted(values):
        groups.setdefault(encode(values[process]), []).append(process)
    return '; '.join(
        f'process{"es" * (len(group) > 1)} {", ".join(map(str, group))}: '
        f'{repr(values[group[0]])[:300]}' for group in groups.values())
