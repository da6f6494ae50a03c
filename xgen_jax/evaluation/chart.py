"""Charts as inline SVG, with round ticks and a log scale where useful: a line, raw values faint and
a running mean in front; a histogram, with thresholds.

Colours are left to the page's style sheet through the classes `raw`, `smooth`, `grid`, `frame`,
`kept`, `dropped` and `threshold`, so that a chart follows the page from light to dark.
"""

import html
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40
MAX_POINTS = 500  # more than the chart's pixels would only make the page larger
LOG_RATIO = 10.0  # values spanning more than this get a log scale
BARS = 48
TALL = 6.0  # one bar higher than this many mean bars gets heights by square root


def line_chart(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    label: str,
    log: bool = True,
    x_label: str = "step",
) -> str:
    """Plot one curve as SVG.

    Args:
      x: positions, increasing; finite.
      y: values, as many; NaN and infinities are left out and counted below the curve.
      label: name of the values, with their unit.
      log: whether to use a log scale where the values are positive and span more than a factor of
        ten.
      x_label: name of the positions.

    Returns:
      An `<svg>` element, or a paragraph that says that there is nothing to plot.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(y)
    dropped = int((~finite).sum())
    x, y = x[finite], y[finite]
    if len(x) < 2:
        return f'<p class="missing">{html.escape(label)}: fewer than two finite values to plot.</p>'
    smooth = running_mean(y, max(1, len(y) // 25))
    # A spike of the first steps or of one bad batch would flatten everything else: the range is
    # that of nearly all.
    low, high = np.quantile(y, 0.005), np.quantile(y, 0.995)
    low, high = min(low, smooth.min()), max(high, smooth.max())
    log = bool(log and y.min() > 0 and high / low > LOG_RATIO)
    if high == low:
        low, high = low - max(abs(low), 1) * 0.1, high + max(abs(high), 1) * 0.1
    ticks = log_ticks(low, high) if log else linear_ticks(low, high)
    scale = math.log10 if log else float
    margin = 0.04 * (scale(high) - scale(low))
    bottom, top = scale(low) - margin, scale(high) + margin

    def across(value: float) -> float:
        return LEFT + (value - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return TOP + (top - scale(value)) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        if bottom <= scale(tick) <= top:
            height = up(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
                f'y2="{height:.1f}"/>'
            )
            parts.append(
                f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{short(tick)}</text>'
            )
    for tick in linear_ticks(x[0], x[-1], 5):
        if x[0] <= tick <= x[-1]:
            parts.append(
                f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" '
                f'text-anchor="middle">{short(tick)}</text>'
            )
    # Every k-th raw value, not a mean of k: the faint curve shows the spread of the raw values.
    every = -(-len(x) // MAX_POINTS)
    shown = np.union1d(np.arange(0, len(x), every), [len(x) - 1])
    for name, values in (("raw", np.clip(y, low, high)), ("smooth", smooth)):
        points = " ".join(f"{across(x[i]):.1f},{up(values[i]):.1f}" for i in shown)
        parts.append(f'<polyline class="{name}" points="{points}"/>')
    note = f"{label}{', log scale' if log else ''}"
    if dropped:
        note += f"; {dropped} not finite, not shown"
    first, last = (f"{short(smooth[i])} at {x_label} {x[i]:g}" for i in (0, -1))
    described = f"{note}: {first}, {last}"
    return _figure(described, parts, x_label, note)


def _figure(described: str, parts: Sequence[str], x_label: str, title: str) -> str:
    """Return a chart in its frame."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(described)}">'
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        + "".join(parts)
        + f'<text x="{middle:.0f}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{html.escape(x_label)}</text>'
        + f'<text class="label" x="{LEFT}" y="{TOP - 10}">{html.escape(title)}</text></svg>'
    )


def histogram(
    values: Sequence[float] | np.ndarray,
    label: str,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    what: str = "clips",
) -> str:
    """Plot how often values occur as SVG, with what two thresholds drop in another colour.

    Args:
      values: those that are not finite are left out.
      label: name of the values, with their unit.
      low: what is below is dropped; None for nothing.
      high: what is above is dropped; None for nothing.
      log: whether to use a log scale; values are then 0 or more, and those too small for it are in
        the first bar.
      what: name of the things that have the values.

    Returns:
      An `<svg>` element, or a paragraph that says that there is nothing to plot.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return f'<p class="missing">{html.escape(label)}: no values to plot.</p>'
    scale = np.log10 if log else np.asarray
    borders = _borders(values, low, high, log)
    # Values far out are in the last bar on their side.
    inside = np.clip(values, borders[0], np.nextafter(borders[-1], -np.inf))
    counts, _ = np.histogram(inside, borders)
    tall = counts.max() > TALL * counts[counts > 0].mean()
    height = np.sqrt if tall else np.asarray
    left, right = scale(borders[0]), scale(borders[-1])

    def across(value: float) -> float:
        return LEFT + float((scale(value) - left) / (right - left)) * (WIDTH - LEFT - RIGHT)

    def up(count: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - float(height(count) / height(counts.max())) * (HEIGHT - TOP - BOTTOM - 6)
        )

    parts = []
    for tick in linear_ticks(0, counts.max(), 4):
        if tick == int(tick):
            y = up(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>'
            )
    for start, end, count in zip(borders, borders[1:], counts.tolist()):
        if count:
            dropped = (low is not None and start < low) or (high is not None and start > high)
            x, y = across(start), min(up(count), HEIGHT - BOTTOM - 1)  # one clip is seen too
            parts.append(
                f'<rect class="{"dropped" if dropped else "kept"}" x="{x:.1f}" y="{y:.1f}" '
                f'width="{max(across(end) - x - 0.8, 0.8):.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"/>'
            )
    for threshold in (low, high):
        if threshold is not None and borders[0] <= threshold <= borders[-1]:
            x = across(threshold)
            toward, anchor = (5, "start") if x < WIDTH / 2 else (-5, "end")
            parts.append(
                f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"/><text class="label" x="{x + toward:.1f}" '
                f'y="{TOP + 14}" text-anchor="{anchor}">{threshold:g}</text>'
            )
    for tick in _few_ticks(borders[0], borders[-1], log):
        parts.append(
            f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="middle">{short(tick)}</text>'
        )
    note = f"{label}{', log scale' if log else ''}"
    counted = f"{what}{', heights by square root' if tall else ''}"
    described = f"{counted}, by {note}; {len(values)} in all"
    return _figure(described, parts, note, counted)


def _borders(values: np.ndarray, low: float | None, high: float | None, log: bool) -> np.ndarray:
    """Return the borders of a histogram's bars, increasing; each bar is on one side of a threshold.

    A value equal to a threshold is kept, and a bar holds its lower border but not its upper one.
    """
    thresholds = [t for t in (low, high) if t is not None and (t > 0 or not log)]
    # The range is that of nearly all values, and both sides of each threshold.
    if log:
        positive = values[values > 0]
        first, last = np.quantile(positive, (0.02, 0.995)) if len(positive) else (1.0, 1.0)
        if thresholds:
            first = np.clip(first, min(thresholds) / 100, min(thresholds) / 3)
        first = max(first, 1e-9)
        last = max(last * 1.05, first * 10, *(t * 3 for t in thresholds))
    else:
        first, last = np.quantile(values, (0.005, 0.995))
        all_of_them = [first, last, *thresholds]
        room = 0.1 * (max(all_of_them) - min(all_of_them)) or 1.0
        first = min([first, *(t - room for t in thresholds)])
        last = max([last + room / 10, first + room, *(t + room for t in thresholds)])
    scale = math.log10 if log else float
    exact = [first, *sorted(thresholds), last]
    corners = [scale(x) for x in exact]
    borders = [exact[:1]]
    for start, end, exact_end in zip(corners, corners[1:], exact[1:]):
        bars = max(1, round(BARS * (end - start) / (corners[-1] - corners[0])))
        between = np.linspace(start, end, bars + 1)[1:-1]
        above = exact_end == high and exact_end != last
        borders += [
            10.0**between if log else between,
            [np.nextafter(exact_end, np.inf) if above else exact_end],
        ]
    return np.concatenate(borders)


def _few_ticks(first: float, last: float, log: bool) -> list[float]:
    """Return ticks of which no two labels meet."""
    if not log:
        return linear_ticks(first, last)
    ticks = log_ticks(first, last)
    return (
        ticks
        if len(ticks) < 8
        else [t for t in ticks if math.isclose(t, 10.0 ** round(math.log10(t)))]
    )


def running_mean(y: np.ndarray, radius: int) -> np.ndarray:
    """Mean over up to `radius` neighbours on each side, of y (N,).

    Near the start the window shrinks on both sides: training curves are steep there, and a lopsided
    window would be off. Near the end, where they are flat, only its right side shrinks: the last
    value is then a mean too, not one noisy step.
    """
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    reach = np.minimum(radius, index)
    end = np.minimum(index + reach + 1, len(y))
    return (total[end] - total[index - reach]) / (end - index + reach)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with 2 and 5 between them when there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [
        m * 10.0**decade for decade in decades for m in multiples if low <= m * 10.0**decade <= high
    ]


def short(value: float) -> str:
    """Format a tick's number: 0.05, 250, 5k, 2M."""
    for factor, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"
