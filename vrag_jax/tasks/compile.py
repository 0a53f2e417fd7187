"""Ahead-of-time compilation of a run's programs for accelerators that need not be present."""

import json
import math
import re

import jax

from vrag_jax.config import ConfigError
from vrag_jax.planning.chips import GIB, parse_topology, topology_devices
from vrag_jax.planning.compile import (
    HEADER,
    compile_program,
    iteration_seconds,
    line,
    record,
    without_compilation_cache,
)
from vrag_jax.planning.plan import plan
from vrag_jax.planning.run_programs import programs
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.tasks.plan import needs


def run(context: RunContext) -> None:
    """Prints what every program takes, and writes it to `workdir/compile.json`.

    Raises:
      SystemExit: if a program does not fit.
    """
    config = context.config
    try:
        chip, _ = parse_topology(config.compile.topology)
        devices = topology_devices(config.compile.topology)
        planned = plan(config, context.phases, devices=devices)
    except ValueError as error:
        raise ConfigError(f'config.{error}') from error
    memory = config.compile.memory_gib or chip.hbm_gib
    print(f'{config.policy.preset} on {config.compile.topology}: {planned.mesh.size} chips '
          f'({", ".join(f"{k} {v}" for k, v in planned.mesh.shape.items() if v > 1) or "one"}), '
          f'{planned.parameter_count / 1e9:.2f}B parameters, {memory:.2f} GiB a chip')
    print(HEADER)
    rows, failed = [], []
    for program in programs(config, planned):
        patterns = config.compile.programs
        if patterns and not any(re.search(pattern, program.name) for pattern in patterns):
            continue
        with without_compilation_cache():
            compiled = compile_program(config, planned, program)
        print(line(compiled, chip, memory), flush=True)
        rows.append(record(compiled, chip, memory))
        if compiled.error or compiled.total > memory * GIB:
            failed.append(compiled.name)
    seconds = iteration_seconds(rows)
    print(f'an iteration of trajectories of full length takes {sum(seconds.values()):.0f} s or '
          f'more: {", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())}')
    (context.workdir / 'compile.json').write_text(json.dumps({
        'topology': config.compile.topology, 'chips': planned.mesh.size,
        'mesh': dict(planned.mesh.shape), 'preset': config.policy.preset,
        'parameters': planned.parameter_count, 'memory_gib': memory, 'jax': jax.__version__,
        'peak_flops': chip.flops, 'iteration_seconds': seconds, 'programs': rows}, indent=1) + '\n')
    if failed:
        raise SystemExit(f'{len(failed)} of {len(rows)} programs do not fit: {", ".join(failed)}')


def devices(config: RunConfig) -> int:
    """Returns how many chips the topology has."""
    return math.prod(parse_topology(config.compile.topology)[1])


TASK = Task(run, needs=needs, searches=lambda config: False, devices=devices)
