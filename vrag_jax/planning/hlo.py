"""Optimised HLO text, as XLA prints it for CPUs, GPUs and TPUs, taken apart."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

DTYPE_BITS = {
    'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16,
    's32': 32, 'u32': 32, 's64': 64, 'u64': 64, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64,
    'c64': 64, 'c128': 128, 'token': 0, 'opaque': 0,
}
_ARRAY = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%?([\w.\-]+)$')
_LINE = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = ')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+)\s*\(.*->.*\{\s*$')
# Attributes may go over several lines, and those may begin with a brace.
_END = re.compile(r'^\}(, execution_thread="[^"]*")?\s*$')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|branch_computations|true_computation|'
                     r'false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array; `on_chip` is one that a TPU keeps in its own memory, not in HBM."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        bits = DTYPE_BITS.get(self.dtype, 8)  # All kinds of f8 are left.
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: without '%'.
      opcode: e.g. 'dot'.
      result: arrays of the result, those of a tuple one after the other.
      operands: names.
      attributes: what follows the operands.
      operand_text: as it stands between the parentheses.
    """

    name: str
    opcode: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    operand_text: str

    def called(self, attribute: str = '') -> list[str]:
        """Names of the computations that it calls, or only those of an attribute."""
        found = []
        for match in _CALLED.finditer(self.attributes):
            if not attribute or match.group(0).startswith(attribute + '='):
                found += [name.strip().lstrip('%') for name in match.group(1).strip('{}').split(',')
                          if name.strip()]
        return found


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; `root` is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Parameters in the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == 'parameter']
        return sorted(found, key=lambda i: int(i.operand_text or 0))

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Instructions that have each instruction as an operand."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users

    def operand(self, instruction: Instruction, number: int) -> Instruction | None:
        """Returns the instruction that makes an operand."""
        if number >= len(instruction.operands):
            return None
        return self.instructions.get(instruction.operands[number])


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the one that is run."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Parses the text of an optimised module.

    Raises:
      ValueError: if there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    name, is_entry, lines = '', False, list[tuple[bool, Instruction]]()
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and not _LINE.match(line):
            name, is_entry, lines = header.group(2), bool(header.group(1)), []
        elif _END.match(line) and lines:
            roots = [i for root, i in lines if root] or [lines[-1][1]]
            made = Computation(name, {i.name: i for _, i in lines}, roots[0])
            computations[name] = made
            entry = made if is_entry else entry
            lines = []
        else:
            match = _LINE.match(line)
            if match:
                lines.append((bool(match.group(1)), _instruction(match.group(2),
                                                                 line[match.end():])))
    if entry is None:
        raise ValueError('not the text of an HLO module: it has no ENTRY computation')
    return Module(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the array types in a piece of text, in order."""
    return tuple(
        Array(dtype, tuple(int(n.lstrip('<=')) for n in sizes.split(',') if n),
              'S(' in (layout or ''))
        for dtype, sizes, layout in _ARRAY.findall(text))


def group_size(instruction: Instruction) -> int:
    """Returns among how many devices a collective exchanges."""
    text = instruction.attributes
    if match := re.search(r'replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}', text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match.group(2)))
    if match := re.search(r'replica_groups=\[([0-9,]+)\]<=', text):
        return int(match.group(1).split(',')[-1])
    if match := re.search(r'replica_groups=\{\{([0-9,]*)\}', text):
        return len(match.group(1).split(','))
    if 'source_target_pairs' in text:
        return 2
    return 1


def trip_count(loop: Instruction, module: Module) -> int | None:
    """Returns how often a while loop goes round, or None where only the data tell."""
    if match := re.search(r'known_trip_count[^0-9]*(\d+)', loop.attributes):
        return int(match.group(1))
    condition = module.computations[loop.called('condition')[0]]
    limit = _compared_with(condition, module)
    if limit is None:
        return None
    # Loops that XLA makes of products and gathers go on by more than one.
    return -(-limit // _step(condition, module.computations[loop.called('body')[0]], module))


def _compared_with(condition: Computation, module: Module) -> int | None:
    """The constant `n` of a condition that is nothing but `counter < n`."""
    compares = list(_all(condition, module, 'compare'))
    constants = [int(i.operand_text) for i in _all(condition, module, 'constant')
                 if re.fullmatch(r'\d+', i.operand_text)]
    logic = any(True for op in ('and', 'or', 'reduce') for _ in _all(condition, module, op))
    if len(compares) != 1 or 'direction=LT' not in compares[0].attributes or logic:
        return None
    return constants[0] if len(constants) == 1 else None


def _step(condition: Computation, body: Computation, module: Module) -> int:
    """By how much a loop's body moves the counter that its condition looks at; 1 if unclear."""
    elements = [i for i in _all(condition, module, 'get-tuple-element')]
    match = re.search(r'index=(\d+)', elements[0].attributes) if len(elements) == 1 else None
    moved = body.operand(body.root, int(match.group(1))) if match else None
    while moved is not None and moved.opcode in ('copy', 'bitcast'):
        moved = body.operand(moved, 0)
    if moved is None:
        return 1
    inner = body
    if moved.opcode == 'fusion':
        inner = module.computations[moved.called()[0]]
        moved = inner.root
    if moved.opcode != 'add':
        return 1
    numbers = [operand.operand_text for n in range(2)
               if (operand := inner.operand(moved, n)) is not None
               and operand.opcode == 'constant' and operand.operand_text.isdecimal()]
    return int(numbers[0]) if len(numbers) == 1 and int(numbers[0]) > 0 else 1


def _all(computation: Computation, module: Module, opcode: str) -> Iterator[Instruction]:
    """Instructions of a kind in a computation and in the fusions that it calls."""
    for instruction in computation.instructions.values():
        if instruction.opcode == opcode:
            yield instruction
        if instruction.opcode in ('fusion', 'call'):
            for name in instruction.called():
                yield from _all(module.computations[name], module, opcode)


def _instruction(name: str, rest: str) -> Instruction:
    """Parses what follows `name = `."""
    rest = re.sub(r'/\*.*?\*/', '', rest)
    end = _closing(rest, 0) + 1 if rest.startswith('(') else _type_end(rest)
    result = arrays(rest[:end])
    rest = rest[end:].lstrip()
    start = rest.find('(')
    opcode = rest[:start]
    close = _closing(rest, start)
    inside = rest[start + 1 : close]
    operands = []
    for piece in _split(inside):
        match = _NAME.search(piece.strip())
        if match and opcode not in ('constant', 'parameter'):
            operands.append(match.group(1))
    return Instruction(name, opcode, result, tuple(operands), rest[close + 1 :], inside)


def _type_end(text: str) -> int:
    """End of an array type: the first space that is not within braces."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in '{(') - (letter in '})')
        if letter == ' ' and not depth:
            return place
    return len(text)


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == '(') - (text[place] == ')')
        if not depth:
            return place
    return len(text)


def _split(text: str) -> Sequence[str]:
    """Splits at commas that are in no bracket."""
    pieces, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]] if text.strip() else []
