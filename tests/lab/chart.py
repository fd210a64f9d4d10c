"""Line charts as small SVG files, without a plotting library.

A picture in a README does not know whether the page around it is light or dark. So the background stays
transparent, and every colour is a middle tone, with a contrast of at least 3.7 : 1 on white and on GitHub's
dark page.
"""

import math
from html import escape

GREY = "#757d85"  # axes and text
COLOURS = {
    "blue": "#2f81f7",
    "red": "#e5484d",
    "green": "#2a9140",
    "orange": "#b8730a",
    "violet": "#a05ad5",
    "teal": "#0a8f9c",
    "pink": "#c2529b",
    "olive": "#7f7b17",
}
WIDTH, HEIGHT = 760, 360
LEFT, TOP, BOTTOM = 64, 44, 52  # margins; the right one depends on the names of the lines
FONT = 13  # height of the text; a letter is about 0.56 of it wide
GAP = 17  # least distance between two names
LONGEST_NAME = 30  # letters of a name beside its line


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from low to high, about so many: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """As many decimals as neighbouring ticks need; thousands get a comma."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


def x_ticks(low: float, high: float, width: float) -> list[tuple[float, str]]:
    """Ticks with their labels, as many as stand side by side in so many pixels: [(x, label)]."""
    for about in (6, 5, 4, 3, 2, 1):
        found = ticks(low, high, about)
        step = found[1] - found[0] if len(found) > 1 else high - low
        labelled = [(x, tick_label(x, step)) for x in found]
        widest = max(len(label) for _, label in labelled)
        if (0.56 * widest + 1) * FONT <= width * step / (high - low):
            break
    return labelled


def spread_out(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in [low, high], at least `gap` apart, in the same order, with the least sum of squared moves.

    wanted: ascending. Names that collide form a block; a block stands where its members want it on average,
    and two blocks that collide become one (pool adjacent violators, the algorithm of isotonic regression).
    """
    blocks = []  # (mean of the wanted starts, number of members)
    for i, y in enumerate(wanted):
        start = y - i * gap  # with the gaps taken out, positions need only ascend
        count = 1
        while blocks and blocks[-1][0] > start:
            other, size = blocks.pop()
            start = (start * count + other * size) / (count + size)
            count += size
        blocks.append((start, count))

    last_start = high - (len(wanted) - 1) * gap
    starts = [min(max(start, low), last_start) for start, count in blocks for _ in range(count)]
    return [start + i * gap for i, start in enumerate(starts)]


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that is too long without its middle: both ends of a run's name tell runs apart."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return name[:head] + "…" + name[head + 1 - longest :]


def thinned(xs: list, ys: list, most: int = 600) -> tuple[list, list]:
    """A line of at most 2 `most` points that looks the same: of each stretch its lowest and highest point.

    The first and the last point stay, so that the line ends where its name stands.
    """
    if len(xs) <= 2 * most:
        return xs, ys
    kept = {0, len(xs) - 1}
    for part in range(most - 1):
        stretch = range(part * len(xs) // (most - 1), (part + 1) * len(xs) // (most - 1))
        kept.add(min(stretch, key=ys.__getitem__))
        kept.add(max(stretch, key=ys.__getitem__))
    order = sorted(kept)
    return [xs[i] for i in order], [ys[i] for i in order]


def line_chart(
    title, lines: dict, x_label, y_label, mark: float | None = None, dashed: dict | None = None, bars=None
) -> str:
    """An SVG picture. lines: {name: (colour, xs, ys)}, each named at its end; all numbers are finite.

    mark: the y of a thick line without a name. dashed: {name: y} of level lines, dashed and named.
    bars: {name of a line: [(low, high) for each of its points]}: the points are dots with bars, and the line
    between them is thin.
    """
    dashed = dashed or {}
    bars = bars or {}
    xs = [x for _, line_xs, _ in lines.values() for x in line_xs]
    ys = [y for _, _, line_ys in lines.values() for y in line_ys] + [*dashed.values()]
    ys += [y for line_bars in bars.values() for ends in line_bars for y in ends]
    x_low = min(xs)
    x_high = max(xs) if max(xs) > x_low else x_low + 1  # a single point has no width
    beside = 0.03 * (x_high - x_low) if bars else 0.0  # dots and bars stand clear of the axis
    x_low -= beside
    x_high += beside
    margin = 0.05 * (max(ys) - min(ys)) if max(ys) > min(ys) else 0.5  # a flat line has no height
    y_low = min(ys) - margin
    y_high = max(ys) + margin
    names = {name: shortened(name) for name in [*lines, *dashed]}
    right = WIDTH - 16 - 0.56 * FONT * max(map(len, names.values()))
    bottom = max(HEIGHT - BOTTOM, TOP + GAP * len(names))  # many names need a higher picture
    height = bottom + BOTTOM

    def across(x):
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def down(y):
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP)

    def text(x, y, content, anchor="start", colour=GREY, more=""):
        place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
        return f'<text {place} fill="{colour}"{more}>{escape(content)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" role="img" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" font-size="{FONT}">',
        f"<title>{escape(title)}</title>",
        text(LEFT, 22, title, more=' font-weight="bold"'),
    ]

    # the grid and its numbers
    y_ticks = ticks(y_low, y_high)
    for y in y_ticks:
        parts.append(f'<path d="M{LEFT} {down(y):.1f}H{right:.0f}" stroke="{GREY}" stroke-width="0.3"/>')
        parts.append(text(LEFT - 8, down(y) + 4, tick_label(y, y_ticks[1] - y_ticks[0]), "end"))
    if mark is not None and y_low <= mark <= y_high:
        parts.append(f'<path d="M{LEFT} {down(mark):.1f}H{right:.0f}" stroke="{GREY}" stroke-width="1.5"/>')
    for x, label in x_ticks(x_low, x_high, right - LEFT):
        parts.append(f'<path d="M{across(x):.1f} {bottom}v5" stroke="{GREY}"/>')
        parts.append(text(across(x), bottom + 20, label, "middle"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right:.0f}" fill="none" stroke="{GREY}"/>')
    parts.append(text((LEFT + right) / 2, height - 12, x_label, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(text(16, middle, y_label, "middle", more=f' transform="rotate(-90 16 {middle:.0f})"'))

    # the lines, each with its name at about the height where it ends
    ends = [(down(line_ys[-1]), name) for name, (_, _, line_ys) in lines.items()]
    ends = sorted(ends + [(down(y), name) for name, y in dashed.items()])
    heights = spread_out([y for y, _ in ends], GAP, TOP, bottom - 4)
    height_of = {name: y for (_, name), y in zip(ends, heights, strict=True)}

    def name_it(name, x, y, tone):
        label = height_of[name]
        connection = f"M{x + 2:.0f} {y:.0f}L{right + 8:.0f} {label:.0f}"
        dots = ' stroke-dasharray="1 4"' if x < right - 1 else ""  # far from its name: no part of the line
        parts.append(f'<path d="{connection}" fill="none" stroke="{tone}" stroke-width="0.7"{dots}/>')
        parts.append(text(right + 12, label + 4, names[name], colour=tone))

    for name, y in dashed.items():
        level = f'd="M{LEFT} {down(y):.1f}H{right:.0f}" stroke-dasharray="6 4"'
        parts.append(f'<path {level} fill="none" stroke="{GREY}" stroke-width="1.5"/>')
        name_it(name, right, down(y), GREY)
    for name, (colour, line_xs, line_ys) in lines.items():
        tone = COLOURS[colour]
        line = list(zip(*thinned(line_xs, line_ys), strict=True))
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
        thickness = 1 if name in bars else 2
        parts.append(f'<polyline points="{points}" fill="none" stroke="{tone}" stroke-width="{thickness}"/>')
        if name in bars:
            for x, y, (low, high) in zip(line_xs, line_ys, bars[name], strict=True):
                parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="4" fill="{tone}"/>')
                bar = f'd="M{across(x):.1f} {down(low):.1f}V{down(high):.1f}"'
                parts.append(f'<path {bar} stroke="{tone}" stroke-width="1.5"/>')
        if len(line) == 1:
            x, y = across(line[0][0]), down(line[0][1])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{tone}"/>')
        name_it(name, across(line_xs[-1]), down(line_ys[-1]), tone)
    return "\n".join([*parts, "</svg>\n"])
