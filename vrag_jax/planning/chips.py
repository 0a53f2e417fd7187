"""TPU chips: peak figures, and topologies to compile for."""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip; figures of Google's public system architecture pages.

    Attributes:
      name: as in topologies.
      flops: peak operations a second, bfloat16.
      hbm_gib: memory that a program may use, as the compiler says it.
      hbm_bytes_per_s: bandwidth of its memory.
      link_bytes_per_s: of all links to its neighbours together, out of the chip.
    """

    name: str
    flops: float
    hbm_gib: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float


CHIPS = {chip.name: chip for chip in (
    Chip('v5e', 197e12, 15.75, 819e9, 200e9),
    Chip('v5p', 459e12, 95.73, 2765e9, 600e9),
    Chip('v6e', 918e12, 31.24, 1640e9, 448e9),
)}


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least seconds that a program takes, by what limits it."""

    arithmetic: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The largest: they may overlap."""
        return max(self.arithmetic, self.memory, self.links)

    @property
    def limit(self) -> str:
        """What limits it."""
        return max(('arithmetic', self.arithmetic), ('memory', self.memory),
                   ('links', self.links), key=lambda pair: pair[1])[0]


def bound(chip: Chip, flops: float, traffic: float, sent: float) -> Bound:
    """Returns the bounds on a program's time.

    Args:
      chip: on which it runs.
      flops, traffic, sent: operations, bytes of memory traffic and bytes sent, of a chip.
    """
    return Bound(flops / chip.flops, traffic / chip.hbm_bytes_per_s,
                 sent / chip.link_bytes_per_s)


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns chip and shape of e.g. 'v5p:2x2x1'.

    Raises:
      ValueError: if the chip is unknown, or the shape is none.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', name)
    if not match or match.group(1) not in CHIPS:
        raise ValueError(f"compile.topology must be like 'v5p:2x2x1', of one of {tuple(CHIPS)}, "
                         f'got {name!r}')
    return CHIPS[match.group(1)], tuple(int(n) for n in match.group(2).split('x'))


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Returns devices that programs can be compiled for, and that are not there.

    Raises:
      ValueError: if the topology cannot be made, or libtpu is not installed.
    """
    from jax.experimental import topologies

    _, shape = parse_topology(name)
    # Without this libtpu asks the machine which TPU it has.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    # Nothing here takes hold of a TPU, so several processes may compile at a time.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    options = {}
    if all(size == 1 for size in shape):
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(name, 'tpu', **options).devices
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"compile.topology = {name!r}: {error}; compiling for TPUs needs libtpu: "
            "pip install -e '.[tpu-aot]'") from error
