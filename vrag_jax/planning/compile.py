"""Programs compiled ahead of time for accelerators, and what is learnt of them."""

import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vrag_jax.models.common.flops import training_flops
from vrag_jax.models.families import family_of
from vrag_jax.planning.chips import GIB, Chip, bound
from vrag_jax.planning.plan import Plan, device_bytes
from vrag_jax.planning.run_programs import Program
from vrag_jax.planning.work import Work, work
from vrag_jax.run.policy_setup import sampler_copy
from vrag_jax.run.run_config import RunConfig

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
    phase = planned.phases.get(program.phase)
    if phase is None and planned.phases:
        phase = list(planned.phases.values())[-1]
    overlap = phase is not None and phase.phase.overlap
    # The sampler's cache is given back before an update.
    if planned.pool is not None and (program.samples or overlap):
        held.append(planned.pool)
    if phase is not None:
        held += [phase.state.trainable, phase.state.opt_state, phase.gradients]
    if program.samples or overlap:
        # Beside the learner it samples with weights that are no longer the learner's.
        own = phase.state.trainable if phase is not None and overlap else {}
        held.append(sampler_copy(
            planned.params, own, config, planned.mesh, family_of(planned.model_config).axes))
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
