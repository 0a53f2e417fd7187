"""Learning curves and intervals as inline SVG; colours come from the page's CSS."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 400, 220  # of a chart's viewBox; it scales with its column
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26  # margins
POINTS = 240  # most points of a line
LOG_RATIO = 30  # curves that span less stay on a linear axis


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
      label: its name.
      steps: `[N]` increasing steps.
      values: `[N]` finite values.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray


def line_chart(title: str, series: Sequence[Series], log_axis: bool = False) -> str:
    """Draws curves over steps: faint as measured, strong as a running mean.

    Args:
      title: read out by screen readers.
      series: at least one curve with at least one point each.
      log_axis: whether values stand on a logarithmic axis where they are all
        positive and span more than a factor of `LOG_RATIO`.

    Returns:
      An `<svg>` element; the i-th curve has the class `series-i`.
    """
    values = np.concatenate([s.values for s in series])
    logarithmic = log_axis and bool(0 < LOG_RATIO * values.min() < values.max())
    ticks = log_ticks(values.min(), values.max()) if logarithmic else nice_ticks(
        float(values.min()), float(values.max()))
    scale = np.log10 if logarithmic else np.asarray
    low = float(scale(min(ticks[0], values.min())))
    high = float(scale(max(ticks[-1], values.max())))
    last_step = max(float(s.steps[-1]) for s in series)

    def x(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last_step, 1)

    def y(value):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scale(value) - low) / max(high - low, 1e-12))

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
             f'aria-label="{escape(title)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                     f'y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" '
                     f'text-anchor="end">{_number(tick)}</text>')
    for step in nice_ticks(0, last_step):
        if step <= last_step and step == int(step):
            parts.append(f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - 6}" '
                         f'text-anchor="middle">{step:,.0f}</text>')
    for index, curve in enumerate(series):
        steps, raw = downsample(curve.steps, curve.values)
        smooth = running_mean(raw)
        for kind, line in (('raw', raw), ('smooth', smooth)):
            points = ' '.join(f'{x(s):.1f},{y(v):.1f}' for s, v in zip(steps, line, strict=True))
            parts.append(f'<polyline class="{kind} series-{index}" points="{points}"/>')
        parts.append(f'<circle class="end series-{index}" cx="{x(steps[-1]):.1f}" '
                     f'cy="{y(smooth[-1]):.1f}" r="3"/>')
    return ''.join([*parts, '</svg>'])


def interval_bar(value: float, low: float, high: float) -> str:
    """Draws a share in [0, 1] as a bar with its interval as a whisker."""
    return (
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="0" width="100" height="12" rx="2"/>'
        f'<rect class="bar" x="0" y="0" width="{100 * value:.2f}" height="12" rx="2"/>'
        f'<line class="whisker" x1="{100 * low:.2f}" x2="{100 * high:.2f}" y1="6" y2="6"/></svg>')


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Returns round numbers that enclose a range, about `about` steps apart."""
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns the powers of ten that enclose a positive range."""
    return [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def downsample(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points, so that at most `POINTS` are left."""
    pieces = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return (np.array([steps[piece[-1]] for piece in pieces]),
            np.array([values[piece].mean() for piece in pieces]))


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over a 15th of the curve, cut off at both ends."""
    half = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _number(value: float) -> str:
    return f'{value:g}' if abs(value) < 10_000 else f'{value:,.0f}'
