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


def line_chart(title: str, lines: dict, x_label: str, y_label: str, mark: float | None = None) -> str:
    """An SVG picture. lines: {name: (colour, xs, ys)}, each named at its end; mark: the y of a thick line."""
    xs = [x for _, line_xs, _ in lines.values() for x in line_xs]
    ys = [y for _, _, line_ys in lines.values() for y in line_ys]
    x_low = min(xs)
    x_high = max(xs) if max(xs) > x_low else x_low + 1  # a single point has no width
    margin = 0.05 * (max(ys) - min(ys)) if max(ys) > min(ys) else 0.5  # a flat line has no height
    y_low = min(ys) - margin
    y_high = max(ys) + margin
    right = WIDTH - 16 - 0.56 * FONT * max(map(len, lines))
    bottom = HEIGHT - BOTTOM

    def across(x):
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def down(y):
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP)

    def text(x, y, content, anchor="start", colour=GREY, more=""):
        place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
        return f'<text {place} fill="{colour}"{more}>{escape(content)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="{FONT}">',
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
    x_ticks = ticks(x_low, x_high)
    for x in x_ticks:
        parts.append(f'<path d="M{across(x):.1f} {bottom}v5" stroke="{GREY}"/>')
        parts.append(text(across(x), bottom + 20, tick_label(x, x_ticks[1] - x_ticks[0]), "middle"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right:.0f}" fill="none" stroke="{GREY}"/>')
    parts.append(text((LEFT + right) / 2, HEIGHT - 12, x_label, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(text(16, middle, y_label, "middle", more=f' transform="rotate(-90 16 {middle:.0f})"'))

    # the lines, each with its name at about the height where it ends
    ends = sorted((down(line_ys[-1]), name) for name, (_, _, line_ys) in lines.items())
    heights = spread_out([y for y, _ in ends], GAP, TOP, bottom - 4)
    height_of = {name: height for (_, name), height in zip(ends, heights, strict=True)}
    for name, (colour, line_xs, line_ys) in lines.items():
        tone = COLOURS[colour]
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line_xs, line_ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{tone}" stroke-width="2"/>')
        height = height_of[name]
        start = f"M{across(line_xs[-1]) + 2:.0f} {down(line_ys[-1]):.0f}"
        parts.append(f'<path d="{start}L{right + 8:.0f} {height:.0f}" stroke="{tone}" stroke-width="0.7"/>')
        parts.append(text(right + 12, height + 4, name, colour=tone))
    return "\n".join([*parts, "</svg>\n"])
