"""Analysis of a compiled program: FLOPs, memory traffic, collectives.

XLA's own analysis counts the body of a loop once, however often it runs, and a kernel of
Pallas or cuDNN not at all; here loops count as often as they go round.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from vrag_jax.planning.hlo import (
    Array,
    Computation,
    Instruction,
    Module,
    group_size,
    parse,
    trip_count,
)

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves no memory by itself.
_FREE = frozenset((
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
    'call', 'after-all', 'partition-id', 'replica-id', 'iota', 'copy-done', 'async-done',
    'async-update', 'all-gather-done', 'all-reduce-done', 'collective-permute-done',
    'opt-barrier', 'optimization-barrier'))

# `(instruction, arrays of its operands) -> operations`, or None where it is not known.
CustomFlops = Callable[[Instruction, list[Array]], float | None]


@dataclasses.dataclass
class Exchange:
    """Collectives of a kind: executions, bytes of their results, bytes that a device sends."""

    count: float = 0.0
    bytes: float = 0.0
    sent: float = 0.0


@dataclasses.dataclass
class Work:
    """What one device does in a call.

    Attributes:
      flops: operations of products, `2 m n k` each; what is elementwise does not count.
      bytes: read from and written to its memory, as an estimate: operands and results of
        everything that is not fused, of slices only what they touch.
      collectives: exchanges by kind.
      unknown_loops: loops whose length only the data tell.
      unknown_kernels: custom calls whose operations are not known, and executions.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, Exchange] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0
    unknown_kernels: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def sent(self) -> float:
        """Bytes that the device sends."""
        return sum(exchange.sent for exchange in self.collectives.values())


def work(text: str, loop: int = 1, custom_flops: CustomFlops | None = None) -> Work:
    """Analyses a program.

    Args:
      text: of its optimised module.
      loop: how often a loop goes round whose length only the data tell.
      custom_flops: operations of kernels that are not XLA's.
    """
    module = parse(text)
    counter = _Counter(module, loop, custom_flops or splash_flops)
    counter.visit(module.entry, 1.0, fused=False)
    return counter.work


def splash_flops(instruction: Instruction, operands: list[Array]) -> float | None:
    """Operations of a splash attention kernel over a causal mask, in whole blocks.

    The forward kernel takes two products of every block of scores; backwards that of the
    keys' gradients takes four, that of the queries' three, and one for both five.
    """
    match = re.match(r'splash_mha_(fwd|dq|dkv)', instruction.name)
    if not match:
        return None
    setting = dict(re.findall(r'\\"(\w+)\\": (\w+)', instruction.attributes))
    kernel = match.group(1)
    products = {'fwd': 2, 'dq': 3, 'dkv': 4}[kernel]
    suffix = '' if kernel == 'fwd' else f'_{kernel}'
    if kernel == 'dkv' and setting.get('use_fused_bwd_kernel') == 'true':
        products = 5
    (heads, length, size), (_, seen, _) = [
        a.shape for a in operands if len(a.shape) == 3 and a.shape[-1] >= LANES][:2]
    queries, keys = (int(setting.get(f'block_{name}{suffix}', LANES)) for name in ('q', 'kv'))
    # Of a device that has some queries of a row only, as of the mean of all of them.
    share = sum(min(seen, math.ceil((first + queries) / keys) * keys)
                for first in range(0, seen, queries)) / (seen * (seen / queries))
    return products * 2.0 * heads * length * seen * size * share


LANES = 128  # Of a TPU: heads fill them.


class _Counter:
    """Adds up the work of a module."""

    def __init__(self, module: Module, loop: int, custom_flops: CustomFlops):
        self._module = module
        self._loop = loop
        self._custom_flops = custom_flops
        self.work = Work()

    def visit(self, computation: Computation, times: float, fused: bool) -> None:
        """Counts a computation that is run so often; in a fusion no memory is touched."""
        for instruction in computation.instructions.values():
            self._visit(computation, instruction, times, fused)

    def _visit(self, computation: Computation, instruction: Instruction, times: float,
               fused: bool) -> None:
        opcode = instruction.opcode
        kind = opcode.removesuffix('-start')
        if kind in COLLECTIVES:
            self._exchange(kind, computation, instruction, times)
        elif opcode in ('dot', 'convolution'):
            flops = dot_flops if opcode == 'dot' else convolution_flops
            self.work.flops += times * flops(instruction, self._operands(computation, instruction))
        elif opcode == 'custom-call':
            self._kernel(computation, instruction, times)
        if opcode == 'while':
            count = trip_count(instruction, self._module)
            self.work.unknown_loops += count is None
            body = self._module.computations[instruction.called('body')[0]]
            self.visit(body, times * (self._loop if count is None else count), fused=False)
        elif opcode == 'conditional':
            for name in instruction.called():
                # As if each branch were taken as often as the others.
                self.visit(self._module.computations[name],
                           times / len(instruction.called()), fused)
        elif opcode in ('fusion', 'call', 'async-start'):
            for name in instruction.called():
                self.visit(self._module.computations[name], times,
                           fused or opcode == 'fusion')
        if not fused and opcode not in _FREE:
            self.work.bytes += times * self._traffic(computation, instruction)

    def _operands(self, computation: Computation, instruction: Instruction) -> list[Array]:
        made = [computation.instructions.get(name) for name in instruction.operands]
        return [i.result[0] for i in made if i is not None and i.result]

    def _kernel(self, computation: Computation, instruction: Instruction, times: float) -> None:
        match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        target = match.group(1) if match else ''
        if target not in ('tpu_custom_call', '__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'):
            return
        flops = self._custom_flops(instruction, self._operands(computation, instruction))
        if flops is None:
            name = re.sub(r'[.\d]+$', '', instruction.name)
            self.work.unknown_kernels[name] = self.work.unknown_kernels.get(name, 0) + times
        else:
            self.work.flops += times * flops

    def _exchange(self, kind: str, computation: Computation, instruction: Instruction,
                  times: float) -> None:
        size = group_size(instruction)
        operands = sum(a.bytes for a in self._operands(computation, instruction))
        result = sum(a.bytes for a in instruction.result if a.dtype != 'u32')
        if instruction.opcode.endswith('-start') and kind != 'all-reduce':
            result -= operands  # The operands are part of its result.
        # What each device of a ring passes on.
        share = (size - 1) / size
        sent = {'all-gather': result * share, 'all-reduce': 2 * operands * share,
                'reduce-scatter': operands * share, 'all-to-all': operands * share,
                'collective-permute': float(operands)}[kind]
        exchange = self.work.collectives.setdefault(kind, Exchange())
        exchange.count += times
        exchange.bytes += times * result
        exchange.sent += times * sent

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes that an instruction reads from and writes to the device's memory."""
        operands = [computation.instructions.get(name) for name in instruction.operands]
        result = instruction.result
        if instruction.opcode == 'copy-start':
            result = result[:1]  # The others are its operand and a flag.
        if instruction.opcode == 'dynamic-update-slice':
            update = computation.operand(instruction, 1)
            return 2.0 * sum(_in_memory(a) for a in update.result) if update else 0.0
        if instruction.opcode in ('dynamic-slice', 'gather'):
            return 2.0 * sum(map(_in_memory, result))
        called = instruction.called()
        if instruction.opcode != 'fusion' or not called:
            read = sum(_in_memory(a) for o in operands if o is not None for a in o.result)
            return float(read + sum(map(_in_memory, result)))
        body = self._module.computations[called[0]]
        total = 0.0
        for parameter, operand in zip(body.parameters, operands, strict=False):
            if operand is not None:
                whole = sum(map(_in_memory, operand.result))
                total += min(whole, _touched(body, parameter, self._module))
        return total + _written(body, result)


def dot_flops(instruction: Instruction, operands: list[Array]) -> float:
    """Operations of a `dot`: twice the result's numbers, by the contracted sizes."""
    match = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', instruction.attributes)
    dims = [int(n) for n in match.group(1).split(',') if n] if match else []
    contracted = math.prod(operands[0].shape[d] for d in dims)
    return 2.0 * math.prod(instruction.result[0].shape) * contracted


def convolution_flops(instruction: Instruction, operands: list[Array]) -> float:
    """Operations of a `convolution`, the form that products take on TPUs.

    Only pairs of an output and a kernel place count that meet a real input: batches
    of products are written as windows that skip all others.
    """
    match = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    if not match:
        raise ValueError(f'convolution {instruction.name} has no dim_labels')
    left, right, out = match.groups()
    window = re.search(r'window=\{([^}]*)\}', instruction.attributes)
    fields = dict(re.findall(r'(\w+)=([\w\-]+)', window.group(1))) if window else {}
    spatial = sorted(c for c in out if c.isdigit())
    numbers = 2.0 * operands[1].shape[right.index('i')]
    for label, size in zip(out, instruction.result[0].shape, strict=True):
        if not label.isdigit():
            numbers *= size
    for place, label in enumerate(spatial):
        def field(name: str, default: int, place: int = place) -> int:
            values = fields.get(name)
            return int(values.split('x')[place]) if values else default

        low = int(fields['pad'].split('x')[place].split('_')[0]) if 'pad' in fields else 0
        numbers *= _meetings(
            instruction.result[0].shape[out.index(label)], operands[1].shape[right.index(label)],
            operands[0].shape[left.index(label)], field('stride', 1), low,
            field('lhs_dilate', 1), field('rhs_dilate', 1))
    return numbers


def _meetings(outputs: int, kernel: int, inputs: int, stride: int, low: int, spread: int,
              kernel_spread: int) -> int:
    """Pairs of an output place and a kernel place at which there is an input."""
    count = 0
    for k in range(kernel):
        for o in range(outputs):
            place = o * stride - low + k * kernel_spread
            count += place % spread == 0 and 0 <= place // spread < inputs
    return count


def _in_memory(array: Array) -> int:
    return 0 if array.on_chip else array.bytes


def _touched(body: Computation, parameter: Instruction, module: Module) -> float:
    """Bytes that a fusion reads of a parameter: only slices, where it takes nothing else."""
    size = sum(math.prod(a.shape) for a in parameter.result)
    whole = float(sum(a.bytes for a in parameter.result))
    numbers, is_result = _numbers_touched(body, parameter, module)
    return whole if is_result or not size else whole * min(1.0, numbers / size)


def _numbers_touched(body: Computation, made: Instruction, module: Module) -> tuple[float, bool]:
    """How many numbers of an array a fusion takes, and whether the array is its result, too."""
    total, is_result = 0.0, made is body.root
    for user in body.users.get(made.name, []):
        passed = user.opcode in ('bitcast', 'convert', 'copy')
        if user.opcode in ('dynamic-slice', 'gather') and user.operands[0] == made.name:
            total += sum(math.prod(a.shape) for a in user.result)
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] == made.name:
            continue  # Written in place, see `_written`.
        elif user.opcode == 'fusion':
            inner = module.computations[user.called()[0]]
            for number, operand in enumerate(user.operands):
                if operand == made.name:
                    numbers, on = _numbers_touched(inner, inner.parameters[number], module)
                    total, passed = total + numbers, passed or on
        elif not passed:
            return math.inf, is_result
        if passed:
            numbers, on = _numbers_touched(body, user, module)
            total, is_result = total + numbers, is_result or on
    return total, is_result


def _written(body: Computation, result: tuple[Array, ...]) -> float:
    """Bytes that a fusion writes: of an array that is updated in place, the update."""
    root = body.root
    while root.opcode == 'bitcast' and body.operand(root, 0) is not None:
        root = body.instructions[root.operands[0]]
    parts = [root]
    if root.opcode == 'tuple':
        parts = [body.instructions[name] for name in root.operands if name in body.instructions]
    total = 0.0
    for part, array in zip(parts, result, strict=False):
        update = body.operand(part, 1) if part.opcode == 'dynamic-update-slice' else None
        total += sum(map(_in_memory, update.result)) if update else _in_memory(array)
    return total
