"""What the benchmarks of start-up and scaling compute, and how results are told."""

import json

import pytest

from benchmarks.paired import agreement
from benchmarks.render import load, render
from benchmarks.scaling import Point, exponent, plot
from benchmarks.startup import first_updates, late_compilations


def row(phase, time, compilations):
    return {'phase': phase, 'time': time, 'values': {'compilations': compilations}}


ROWS = [row('pretrain', 112.0, 9.0), row('sft', 120.0, 12.0), row('grpo', 131.5, 30.0),
        row('grpo', 133.0, 31.0), row('grpo', 134.0, 31.0), row('grpo', 135.0, 33.0)]


def test_first_updates_by_hand():
    assert first_updates(ROWS, started=100.0) == {
        'to_first_update': 12.0, 'to_first_grpo_update': 11.5, 'compilations': 30}


def test_late_compilations_by_hand():
    assert late_compilations(ROWS, 'grpo', after=1) == (3, 4)
    assert late_compilations(ROWS, 'grpo', after=3) == (2, 4)


@pytest.mark.parametrize(('loss', 'equal'), [
    (7.4e-5, True), (7.4e-5 + 9e-8, True), (7.4e-5 + 2e-7, False), (0.0, False)])
def test_losses_are_equal_by_their_own_size(loss, equal):
    names = ('loss', 'kl')
    found = agreement({'loss': loss, 'kl': 0.5}, {'loss': 7.4e-5, 'kl': 0.5}, names)
    assert found['equal'] is equal
    assert found['difference'] == {'loss': abs(loss - 7.4e-5), 'kl': 0.0}


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_cost(power):
    points = [Point(n, float(n), 1, [1e6, 3.0 * n**power, 0.0]) for n in (1, 2, 4, 8)]
    assert exponent(points) == pytest.approx(power)


def test_the_plot_has_a_curve_for_each_axis():
    points = [Point(n, float(n), 1, [n * 0.5]) for n in (1, 2, 4)]
    axes = {'turns': points, 'length': points}
    svg = plot(axes)
    assert svg.startswith('<svg xmlns=') and svg.endswith('</svg>')
    for name in ('turns', 'length', 'cost = work'):
        assert f'>{name}</text>' in svg


CONDITIONS = {'vrag_jax': '0123456789abcdef', 'command': 'python -m benchmarks.x --repeats=5',
              'date': '2026-11-25T10:00:00+00:00', 'machine': 'x86_64', 'threads': 2,
              'workers': {'ours': {'jax': '0.10.2'}, 'theirs': {'torch': '2.13.0'}}}


def side(median):
    return {'seconds': [median] * 3, 'median': median, 'min': median - 0.1, 'max': median + 0.1,
            'rate': 100 / median}


def test_results_are_told_with_their_conditions():
    old = {'benchmark': 'rollouts', 'figure': 'greedy', 'unit': 'trajectories/s',
           'ours': side(3.0), 'theirs': side(6.0), 'ratio': 2.0, 'ratio_min': 1.9,
           'ratio_max': 2.1, **CONDITIONS}
    new = old | {'ours': side(2.0), 'ratio': 3.0}
    other = {'benchmark': 'scaling', 'figure': 'turns', 'unit': 'exponent', 'exponent': 0.9,
             'no_faster_than_work': True, 'points': [
                 {'setting': 1, 'median': 0.5, 'min': 0.4, 'max': 0.6}], **CONDITIONS}
    page = render(load([json.dumps(r) for r in (old, new, other)]), 'A note.')
    later = old | {'figure': 'temperature 1', 'vrag_jax': 'fedcba9876543210+',
                   'command': 'python -m benchmarks.x --repeats=3'}
    both = render(load([json.dumps(r) for r in (old, later)]))
    # Each figure stands under the command that it was taken with.
    first, second = both.index('--repeats=5'), both.index('--repeats=3')
    assert first < both.index('| greedy |') < second < both.index('| temperature 1 |')
    assert 'vrag_jax fedcba9876+, 2 CPU cores' in both
    assert page.startswith('# Results\n\nA note.\n')
    assert '| greedy | 2 (1.9 to 2.1) | 6 (5.9 to 6.1) | 50.0 trajectories | **3.00** ' in page
    assert '2026-11-25, vrag_jax 0123456789, 2 CPU cores a side, jax 0.10.2, torch 2.13.0.' in page
    assert '    python -m benchmarks.x --repeats=5' in page
    assert '| turns | exponent 0.9; no faster than work yes; 1: 0.5 s |' in page
