"""Runs of several processes: how they start, wait for each other and end together."""

import contextlib
import itertools
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# The coordination service's client has no public name; Orbax takes it from here, too.
from jax._src.distributed import global_state

from vrag_jax.parallel.cluster import DistributedConfig, Place, find_place
from vrag_jax.parallel.liveness import WEEK_MS, Watchdog, exit_now

_NAMES = 'vrag_jax/host'
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
      SystemExit: if the settings are incomplete; names the field or variable.
      RuntimeError: if JAX has already touched a device.
    """
    try:
        place = find_place(config)
    except ValueError as error:
        sys.exit(f'config.distributed: {error}')
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
    # Of the CPU client only: beside each other, programs of a device may take the threads
    # on which a collective with another process waits for its own.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
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


def is_main() -> bool:
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
    # Asked for again and again: a wait of the service's own fails when a process dies, and
    # JAX aborts on that before the watchdog can say which.
    pause = 0.001
    while len(found := client.key_value_dir_get(_step_key(step))) < global_state.num_processes:
        time.sleep(pause)
        pause = min(0.1, 1.5 * pause)
    names = {int(key.rpartition('/')[2]): name for key, name in found}
    if step:
        # All have read what belongs to the step before, or they were not here.
        client.key_value_delete(_step_key(step - 1, global_state.process_id))
    if len(set(names.values())) > 1:
        raise RuntimeError(f'the processes are not in step: {who_has_what(names)}')


def _step_key(step: int, process: int | str = '') -> str:
    return f'vrag_jax/step/{step}/{process}'


def who_has_what(values: Mapping[int, str]) -> str:
    """Returns e.g. "processes 0, 2: 'a'; process 1: 'b'" of what each process has."""
    groups: dict[str, list[int]] = {}
    for process in sorted(values):
        groups.setdefault(values[process], []).append(process)
    return '; '.join(
        f'process{"es" * (len(group) > 1)} {", ".join(map(str, group))}: {value[:300]!r}'
        for value, group in groups.items())
