"""Chips, topologies, and bounds on time by hand."""

import pytest

from vrag_jax.planning.chips import CHIPS, bound, parse_topology


def test_topologies():
    chip, shape = parse_topology('v5p:2x2x4')
    assert (chip.name, shape) == ('v5p', (2, 2, 4))
    assert parse_topology('v5e:1x1')[1] == (1, 1)


@pytest.mark.parametrize('name', ['', 'v5p', 'v5p:', 'v9:2x2', 'v5p:2', 'v5p:2x2;1', '2x2'])
def test_what_is_no_topology_is_refused(name):
    with pytest.raises(ValueError, match=r"compile\.topology must be like 'v5p:2x2x1'"):
        parse_topology(name)


def test_the_slowest_part_bounds_the_time():
    chip = CHIPS['v5p']
    least = bound(chip, flops=459e12 * 2, traffic=2765e9, sent=600e9 * 3)
    assert (least.arithmetic, least.memory, least.links) == (2, 1, 3)
    assert least.seconds == 3 and least.limit == 'links'
    assert bound(chip, 459e12, 0, 0).limit == 'arithmetic'
