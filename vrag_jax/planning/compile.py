"""Compiles every program of a run's steps for accelerators that need not be there."""

import contextlib
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vrag_jax.config import ConfigError
from vrag_jax.models.common.flops import training_flops
from vrag_jax.models.families import family_of
from vrag_jax.planning.chips import GIB, Chip, bound, parse_topology, topology_devices
from vrag_jax.planning.plan import Plan, device_bytes, plan
from vrag_jax.planning.programs import Program, programs
from vrag_jax.planning.work import Work, work
from vrag_jax.run.policy import sampler_copy
from vrag_jax.run.settings import RunConfig

# The text of the optimised program, of which what the runtime gives back cannot always be
# printed: the compiler writes it to a folder.
_DUMP = {'xla_dump_hlo_as_text': True}
_DUMPED = '*.after_optimizations.txt'


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program, compiled.

    Attributes:
      name: of the program.
      seconds: that compiling took.
      error: of the compiler, '' if there is none.
      arguments, temporaries, outputs: bytes on a chip; outputs without those that take
        an argument's place.
      resident: bytes that the run holds besides: parameters, optimiser, cache, features.
      inputs: of the arguments, those that are not resident.
      work: of a chip.
      minimum: operations of the policy alone that a chip must do, forwards and
        backwards, without anything done twice; 0 where it is not a step of learning.
      calls: of the program in an iteration.
    """

    name: str
    seconds: float
    error: str = ''
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    resident: int = 0
    inputs: int = 0
    work: Work = dataclasses.field(default_factory=Work)
    minimum: float = 0.0
    calls: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Operations over the least of them."""
        return self.work.flops / self.minimum if self.minimum else None

    @property
    def total(self) -> int:
        """Bytes of a chip while it runs, with all that the run holds."""
        return self.resident + self.inputs + self.temporaries + self.outputs


def run(config: RunConfig, workdir: Path) -> None:
    """Prints what every program takes, and writes it to `workdir/compile.json`.

    Raises:
      SystemExit: if a program does not fit.
    """
    try:
        chip, _ = parse_topology(config.compile.topology)
        devices = topology_devices(config.compile.topology)
        planned = plan(config, devices=devices)
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
    (workdir / 'compile.json').write_text(json.dumps({
        'topology': config.compile.topology, 'chips': planned.mesh.size,
        'mesh': dict(planned.mesh.shape), 'preset': config.policy.preset,
        'parameters': planned.parameter_count, 'memory_gib': memory, 'jax': jax.__version__,
        'peak_flops': chip.flops, 'iteration_seconds': seconds, 'programs': rows}, indent=1) + '\n')
    if failed:
        raise SystemExit(f'{len(failed)} of {len(rows)} programs do not fit: {", ".join(failed)}')


def iteration_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the bound on an iteration's time, by program; of records as `record` makes."""
    return {row['program']: row['calls'] * max(row['bound_seconds'].values())
            for row in rows if not row['error']}


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Keeps JAX's persistent cache out of it.

    What was compiled without the chip can be stored there, but is not read again, with a
    warning; if it were, the compiler would write no text.
    """
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # Or it goes on as it began.
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', enabled)
        compilation_cache.reset_cache()


def compile_program(config: RunConfig, planned: Plan, program: Program) -> Compiled:
    """Compiles a program and takes it apart."""
    resident = resident_bytes(config, planned, program)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = program.lower().compile(
                compiler_options={**_DUMP, 'xla_dump_to': folder})
        except jax.errors.JaxRuntimeError as error:
            return Compiled(program.name, time.monotonic() - started, _reason(error),
                            resident=resident)
        seconds = time.monotonic() - started
        texts = list(Path(folder).glob(_DUMPED))
        text = max(texts, key=lambda file: file.stat().st_size).read_text()
    memory = compiled.memory_analysis()
    minimum = 0.0
    if program.learns:
        minimum = training_flops(
            planned.model_config, program.rows, program.tokens // program.rows,
            config.policy.lora) / planned.mesh.size
    return Compiled(
        program.name, seconds, '', memory.argument_size_in_bytes, memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes, resident,
        device_bytes(program.inputs), work(text, program.loop or 1), minimum, program.calls)


def resident_bytes(config: RunConfig, planned: Plan, program: Program) -> int:
    """Bytes that a chip holds while a program runs, whether or not it is given them.

    The policy as it was at first stays as the reference, and what is frozen is shared
    with it; while it samples, there is a copy of the policy as it lies then.
    """
    held: list[Any] = [planned.params, planned.features]
    # The sampler's cache is given back before an update.
    if planned.pool is not None and (program.samples or config.grpo.overlap):
        held.append(planned.pool)
    phase = planned.phases.get(program.phase)
    if phase is None and planned.phases:
        phase = list(planned.phases.values())[-1]
    if phase is not None:
        held += [phase.state.trainable, phase.state.opt_state, phase.gradients]
    if program.samples or config.grpo.overlap:
        held.append(sampler_copy(
            planned.params, {} if phase is None else phase.state.trainable, config, planned.mesh,
            family_of(planned.model_config).axes))
    return device_bytes(held)


HEADER = (f'{"program":20}{"compiled":>9}{"arguments":>11}{"temporary":>11}{"outputs":>9}'
          f'{"held":>8}{"total":>8} GiB  {"Tflop":>8}{"GB":>8}{"sent GB":>9}{"bound":>11}'
          f'{"MFU":>6}{"/min":>6}')


def line(compiled: Compiled, chip: Chip, memory: float) -> str:
    """One line of the table."""
    if compiled.error:
        return f'{compiled.name:20}{compiled.seconds:8.0f}s  does not compile: {compiled.error}'
    did = compiled.work
    least = bound(chip, did.flops, did.bytes, did.sent)
    over = compiled.total / GIB - memory
    sizes = ''.join(f'{n / GIB:{width}.2f}' for n, width in (
        (compiled.arguments, 11), (compiled.temporaries, 11), (compiled.outputs, 9),
        (compiled.resident, 8), (compiled.total, 8)))
    use = f'{compiled.minimum / chip.flops / least.seconds:6.0%}{compiled.ratio:6.2f}' if (
        compiled.minimum) else ''
    exchanged = ', '.join(f'{kind} {e.count:.0f} x {e.bytes / max(e.count, 1) / 1e6:.1f} MB'
                          for kind, e in sorted(did.collectives.items()))
    notes = [f'{over:.2f} GiB too much' if over > 0 else 'fits', exchanged]
    notes += [f'{name} x {n:.0f} not counted' for name, n in did.unknown_kernels.items()]
    return (f'{compiled.name:20}{compiled.seconds:8.0f}s{sizes}      {did.flops / 1e12:8.2f}'
            f'{did.bytes / 1e9:8.1f}{did.sent / 1e9:9.2f}{least.seconds:9.3f} s{use}  '
            f'{least.limit}; {"; ".join(note for note in notes if note)}')


def record(compiled: Compiled, chip: Chip, memory: float) -> dict[str, Any]:
    """The same for `compile.json`; sizes in bytes."""
    did = compiled.work
    least = bound(chip, did.flops, did.bytes, did.sent)
    return {
        'program': compiled.name, 'compile_seconds': round(compiled.seconds, 1),
        'error': compiled.error, 'arguments': compiled.arguments,
        'temporaries': compiled.temporaries, 'outputs': compiled.outputs,
        'resident': compiled.resident, 'total': compiled.total,
        'fits': not compiled.error and compiled.total <= memory * GIB,
        'flops': did.flops, 'bytes': did.bytes,
        'collectives': {k: dataclasses.asdict(v) for k, v in did.collectives.items()},
        'loops_of_unknown_length': did.unknown_loops, 'kernels_not_counted': did.unknown_kernels,
        'bound_seconds': dataclasses.asdict(least), 'limit': least.limit,
        'calls': compiled.calls,
        'minimum_flops': compiled.minimum, 'flops_over_minimum': compiled.ratio,
        'mfu_at_bound': (compiled.minimum / chip.flops / least.seconds
                         if compiled.minimum else None),
    }


def _reason(error: Exception) -> str:
    """What the compiler says, in a line."""
    text = ' '.join(str(error).split())
    match = re.search(r'(Used [\d.]+\w+ of [\d.]+\w+ hbm\. Exceeded hbm capacity by [\d.]+\w+)|'
                      r'(total memory required .*? exceeds available HBM \([^)]*\))', text)
    return match.group(0) if match else text[:300]
