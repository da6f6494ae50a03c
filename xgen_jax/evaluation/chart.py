"""Charts, with round ticks and a log scale where useful: lines, raw values faint and a running mean
in front; a histogram, with thresholds.

Here is where things stand in pixels; `templates/macros.html.j2` draws them as inline SVG, and the
style sheet colours them by their kinds, so that a chart follows the page from light to dark.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40
MAX_POINTS = 500  # more than the chart's pixels would only make the page larger
LOG_RATIO = 10.0  # values spanning more than this get a log scale
BARS = 48
TALL = 6.0  # one bar higher than this many mean bars gets heights by square root
SERIES = 6  # colours of lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart in pixels.

    Attributes:
      title, x_label: above and below.
      described: what a reader hears who does not see it.
      missing: why there is nothing to plot; "" where there is.
      x_ticks, y_ticks: places and their texts.
      lines: (kind, points) each, as SVG has points.
      bars: (kind, x, y, width, height) each.
      verticals: (kind, x, label, side of the label) each.
      legend: (kind, name) each.
    """

    title: str
    x_label: str = ""
    described: str = ""
    missing: str = ""
    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    lines: Sequence[tuple[str, str]] = ()
    bars: Sequence[tuple[str, float, float, float, float]] = ()
    verticals: Sequence[tuple[str, float, str, str]] = ()
    legend: Sequence[tuple[str, str]] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


Curve = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]


def line_chart(
    curves: Mapping[str, Curve],
    label: str,
    log: bool = True,
    x_label: str = "step",
    smooth: bool = True,
    borders: Iterable[float] = (),
) -> Chart:
    """Plot curves.

    Args:
      curves: by name, positions, increasing and finite, and as many values; NaN and infinities are
        left out and counted in the title.
      label: name of the values, with their unit.
      log: whether to use a log scale where the values are positive and span more than a factor of
        ten.
      x_label: name of the positions.
      smooth: whether to plot running means, of a single curve in front of its values.
      borders: positions to mark, where a chunk of the network begins.

    Returns:
      A chart; one without a curve of two finite values says that there is nothing to plot.
    """
    finite: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    dropped = 0
    for name, (x, y) in curves.items():
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        fine = np.isfinite(y)
        dropped += int((~fine).sum())
        if fine.sum() > 1:
            finite[name] = x[fine], y[fine]
    if not finite:
        return Chart(title=label, missing=f"{label}: fewer than two finite values to plot.")
    means = {
        name: running_mean(y, len(y) // 25) if smooth else y for name, (_, y) in finite.items()
    }
    every_y, every_mean = (
        np.concatenate(list(ys)) for ys in ((y for _, y in finite.values()), means.values())
    )
    # A spike of the first steps or of one bad batch would flatten everything else: the range is
    # that of nearly all.
    low, high = np.quantile(every_y, 0.005), np.quantile(every_y, 0.995)
    low, high = min(low, every_mean.min()), max(high, every_mean.max())
    log = bool(log and every_y.min() > 0 and high / low > LOG_RATIO)
    if high == low:
        low, high = low - max(abs(low), 1) * 0.1, high + max(abs(high), 1) * 0.1
    scale = math.log10 if log else float
    margin = 0.04 * (scale(high) - scale(low))
    bottom, top = scale(low) - margin, scale(high) + margin
    first, last = min(x[0] for x, _ in finite.values()), max(x[-1] for x, _ in finite.values())

    def across(value: float) -> float:
        return round(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(TOP + (top - scale(value)) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    def points(x: np.ndarray, y: np.ndarray) -> str:
        # Every k-th value, not a mean of k: the faint curve shows the spread of the raw values.
        shown = np.union1d(np.arange(0, len(x), -(-len(x) // MAX_POINTS)), [len(x) - 1])
        return " ".join(f"{across(x[i]):.1f},{up(y[i]):.1f}" for i in shown)

    lines = []
    if smooth and len(curves) == 1:
        lines += [("raw", points(x, np.clip(y, low, high))) for x, y in finite.values()]
    # A run keeps its colour in charts where others have nothing to plot.
    kinds = {name: f"smooth s{i % SERIES}" for i, name in enumerate(curves) if name in finite}
    lines += [(kind, points(finite[name][0], means[name])) for name, kind in kinds.items()]
    note = f"{label}{', log scale' if log else ''}"
    if dropped:
        note += f"; {dropped} not finite, not shown"
    ends = (
        f"{name} {short(mean[0])} at {x_label} {x[0]:g}, {short(mean[-1])} at {x_label} {x[-1]:g}"
        for (name, (x, _)), mean in zip(finite.items(), means.values())
    )
    ticks = log_ticks(low, high) if log else linear_ticks(low, high)
    places = [("border", across(x), "", "end") for x in borders if first <= x <= last]
    border = [("border", "a chunk begins")] if places else []
    return Chart(
        title=note,
        x_label=x_label,
        described=f"{note}: {'; '.join(ends)}",
        x_ticks=[(across(t), short(t)) for t in linear_ticks(first, last) if first <= t <= last],
        y_ticks=[(up(t), short(t)) for t in ticks if bottom <= scale(t) <= top],
        lines=lines,
        verticals=places,
        legend=[*((kind, name) for name, kind in kinds.items() if len(curves) > 1), *border],
    )


def histogram(
    values: Sequence[float] | np.ndarray,
    label: str,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    what: str = "clips",
) -> Chart:
    """Plot how often values occur, with what two thresholds drop in another colour.

    Args:
      values: those that are not finite are left out.
      label: name of the values, with their unit.
      low: what is below is dropped; None for nothing.
      high: what is above is dropped; None for nothing.
      log: whether to use a log scale; values are then 0 or more, and those too small for it are in
        the first bar.
      what: name of the things that have the values.

    Returns:
      A chart; one of no finite value says that there is nothing to plot.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Chart(title=label, missing=f"{label}: no values to plot.")
    scale = np.log10 if log else np.asarray
    borders = _borders(values, low, high, log)
    # Values far out are in the last bar on their side.
    inside = np.clip(values, borders[0], np.nextafter(borders[-1], -np.inf))
    counts, _ = np.histogram(inside, borders)
    tall = counts.max() > TALL * counts[counts > 0].mean()
    height = np.sqrt if tall else np.asarray
    left, right = scale(borders[0]), scale(borders[-1])

    def across(value: float) -> float:
        place = float((scale(value) - left) / (right - left))
        return round(LEFT + place * (WIDTH - LEFT - RIGHT), 1)

    def up(count: float) -> float:
        place = float(height(count) / height(counts.max()))
        return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM - 6), 1)

    bars = []
    for start, end, count in zip(borders, borders[1:], counts.tolist()):
        if count:
            dropped = (low is not None and start < low) or (high is not None and start > high)
            x, y = across(start), min(up(count), HEIGHT - BOTTOM - 1)  # one clip is seen too
            width = round(max(across(end) - x - 0.8, 0.8), 1)
            bars.append(
                ("dropped" if dropped else "kept", x, y, width, round(HEIGHT - BOTTOM - y, 1))
            )
    thresholds = [t for t in (low, high) if t is not None and borders[0] <= t <= borders[-1]]
    note = f"{label}{', log scale' if log else ''}"
    counted = f"{what}{', heights by square root' if tall else ''}"
    return Chart(
        title=counted,
        x_label=note,
        described=f"{counted}, by {note}; {len(values)} in all",
        x_ticks=[(across(t), short(t)) for t in _few_ticks(borders[0], borders[-1], log)],
        y_ticks=[(up(t), short(t)) for t in linear_ticks(0, counts.max(), 4) if t == int(t)],
        bars=bars,
        verticals=[
            ("threshold", across(t), f"{t:g}", "start" if across(t) < WIDTH / 2 else "end")
            for t in thresholds
        ],
    )


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
