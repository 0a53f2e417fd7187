"""Charts put values where they belong."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from vrag_jax.evaluation.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    downsample,
    interval_bar,
    line_chart,
    log_ticks,
    nice_ticks,
    running_mean,
)


def points(svg, kind, index=0):
    found = re.search(rf'class="{kind} series-{index}" points="([^"]*)"', svg)
    return np.array([[float(v) for v in pair.split(',')] for pair in found[1].split()])


@pytest.mark.parametrize('low,high,expected', [
    (0, 1, [0, 0.5, 1]),
    (0.21, 0.97, [0.2, 0.4, 0.6, 0.8, 1]),
    (0, 1600, [0, 500, 1000, 1500, 2000]),
    (-3, 5, [-4, -2, 0, 2, 4, 6]),
    (0.00031, 0.00039, [0.0003, 0.00032, 0.00034, 0.00036, 0.00038, 0.0004]),
])
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
    np.testing.assert_allclose(nice_ticks(low, high), expected)


def test_ticks_of_a_constant_enclose_it():
    for value in (0.0, 3.0, -2.0):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1]


def test_log_ticks_are_the_powers_of_ten_around():
    assert log_ticks(0.03, 6.0) == [0.01, 0.1, 1.0, 10.0]
    assert log_ticks(1.0, 100.0) == [1.0, 10.0, 100.0]


def test_points_stand_where_their_values_say():
    steps = np.array([0.0, 5.0, 10.0])
    svg = line_chart('Reward', [Series('grpo', steps, np.array([0.0, 0.5, 1.0]))])
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    np.testing.assert_allclose(points(svg, 'raw'), [
        [LEFT, TOP + inner_height],
        [LEFT + inner_width / 2, TOP + inner_height / 2],
        [LEFT + inner_width, TOP]], atol=0.06)


def test_a_log_axis_makes_exponential_decay_a_straight_line():
    steps = np.arange(100.0)
    series = [Series('sft', steps, np.exp(-steps / 10))]
    line = points(line_chart('Loss', series, log_axis=True), 'raw')
    slopes = np.diff(line[:, 1]) / np.diff(line[:, 0])
    np.testing.assert_allclose(slopes, slopes.mean(), rtol=0.1)
    linear = points(line_chart('Loss', series), 'raw')
    assert np.ptp(np.diff(linear[:, 1])) > 1


def test_values_of_a_narrow_range_stay_on_a_linear_axis():
    series = [Series('sft', np.arange(3.0), np.array([1.0, 2.0, 3.0]))]
    assert line_chart('Loss', series, log_axis=True) == line_chart('Loss', series)


def test_the_chart_is_xml_and_escapes_its_title():
    svg = line_chart('<b> & "x"', [Series('a', np.arange(2.0), np.ones(2))])
    assert ElementTree.fromstring(svg).get('aria-label') == '<b> & "x"'


def test_every_series_has_its_own_class():
    curve = np.arange(3.0)
    svg = line_chart('Reward', [Series('a', curve, curve), Series('b', curve, 2 * curve)])
    assert not np.allclose(points(svg, 'smooth', 0), points(svg, 'smooth', 1))


def test_downsampling_keeps_the_mean_and_the_last_step():
    steps, values = np.arange(1.0, 1201.0), np.random.default_rng(0).normal(size=1200)
    fewer_steps, fewer = downsample(steps, values)
    assert len(fewer) == len(fewer_steps) == POINTS
    assert fewer_steps[-1] == 1200
    np.testing.assert_allclose(fewer.mean(), values.mean())
    np.testing.assert_array_equal(downsample(steps[:9], values[:9])[1], values[:9])


def test_running_mean_by_brute_force():
    values = np.random.default_rng(0).normal(size=90)
    half = 3
    expected = [values[max(0, i - half):i + half + 1].mean() for i in range(90)]
    np.testing.assert_allclose(running_mean(values), expected)


def test_interval_bar_is_as_long_as_its_value():
    svg = ElementTree.fromstring(interval_bar(0.5, 0.4, 0.625))
    parts = {part.get('class'): part for part in svg}
    assert float(parts['bar'].get('width')) == 50
    assert [float(parts['whisker'].get(k)) for k in ('x1', 'x2')] == [40, 62.5]
