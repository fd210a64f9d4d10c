"""Line charts: where ticks, names and lines stand, and that they can be read on light and dark pages."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import chart
import pytest

LINES = {
    "up": ("blue", [0, 50, 100], [1.0, 2.0, 3.0]),
    "down & out": ("red", [0, 100], [3.0, 1.0]),
    "a name that collides": ("green", [0, 100], [2.0, 1.01]),
}
SVG = "{http://www.w3.org/2000/svg}"


def picture():
    return ElementTree.fromstring(chart.line_chart("Title <1>", LINES, "step", "nats"))


@pytest.mark.parametrize(
    "low, high, wanted",
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (4.05, 6.2, [4.5, 5.0, 5.5, 6.0]),
        (-0.01, 0.078, [0, 0.02, 0.04, 0.06]),
        (250, 2000, [500, 1000, 1500, 2000]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, wanted):
    assert chart.ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "value, step, text", [(1000, 500, "1,000"), (5, 0.5, "5.0"), (0.02, 0.02, "0.02"), (2, 1, "2")]
)
def test_a_number_has_the_decimals_that_its_neighbours_need(value, step, text):
    assert chart.tick_label(value, step) == text


def best_by_brute_force(wanted, gap, low, high):
    """Of all whole positions that keep the gap, those with the least sum of squared moves."""
    choices = itertools.combinations(range(low, high + 1), len(wanted))
    allowed = (c for c in choices if all(b - a >= gap for a, b in itertools.pairwise(c)))
    return min(sum((p - w) ** 2 for p, w in zip(c, wanted, strict=True)) for c in allowed)


@pytest.mark.parametrize("wanted", [[5, 5, 5], [1, 2, 12], [0, 11, 12], [3, 4, 9], [12, 12, 12], [6]])
def test_names_are_moved_apart_as_little_as_possible(wanted):
    gap, low, high = 3, 0, 12
    found = chart.spread_out(wanted, gap, low, high)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(found)), "names must not overlap"
    assert low <= found[0] and found[-1] <= high, "names must stay inside the picture"
    moved = sum((p - w) ** 2 for p, w in zip(found, wanted, strict=True))
    best = best_by_brute_force(wanted, gap, low, high)
    assert moved <= best + 1e-9, f"moved by {moved}, whole positions can do {best}"


def test_each_line_runs_through_its_points_and_has_its_name_beside_its_end():
    svg = picture()
    names = {text.text: text for text in svg.iter(f"{SVG}text")}
    for line, (name, (colour, _, ys)) in zip(svg.iter(f"{SVG}polyline"), LINES.items(), strict=True):
        points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        assert line.get("stroke") == names[name].get("fill") == chart.COLOURS[colour]
        assert float(names[name].get("x")) > points[-1][0], "the name stands right of the line"
        rises = points[0][1] > points[-1][1]  # y grows downwards
        assert rises == (ys[0] < ys[-1])
    half_way = next(svg.iter(f"{SVG}polyline")).get("points").split()[1]
    first, last = next(svg.iter(f"{SVG}polyline")).get("points").split()[::2]
    middle = [(float(a) + float(b)) / 2 for a, b in zip(first.split(","), last.split(","), strict=True)]
    assert list(map(float, half_way.split(","))) == pytest.approx(middle, abs=0.1), "both axes are linear"


def test_names_do_not_overlap_and_nothing_leaves_the_picture():
    svg = picture()
    heights = sorted(float(text.get("y")) for text in svg.iter(f"{SVG}text") if text.text in LINES)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= chart.FONT, "one name covers another"
    for text in svg.iter(f"{SVG}text"):
        x = float(text.get("x"))
        width = 0.6 * chart.FONT * len(text.text)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[text.get("text-anchor")]
        assert text.get("transform") or left >= 0
        assert text.get("transform") or left + width <= chart.WIDTH + 16, text.text
        assert 0 < float(text.get("y")) < chart.HEIGHT


@pytest.mark.parametrize("mark", [None, 0, 5.5, 6, 40])
def test_a_height_that_stands_out_is_drawn_once_where_it_belongs(mark):
    lines = {"name": ("blue", [0, 100], [4.0, 8.0])}
    svg = ElementTree.fromstring(chart.line_chart("t", lines, "x", "y", mark=mark))
    thick = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("stroke-width") == "1.5"]
    if mark not in (5.5, 6):
        assert not thick, "no height, or one outside of the picture"
        return
    low, high = [
        float(point.split(",")[1]) for point in next(svg.iter(f"{SVG}polyline")).get("points").split()
    ]
    expected = low + (high - low) * (mark - 4) / 4
    assert [float(re.search(r" (\S+)H", path)[1]) for path in thick] == pytest.approx([expected], abs=0.1)


@pytest.mark.parametrize("line", [("blue", [20], [7.0]), ("blue", [0, 20], [7.0, 7.0])])
def test_a_point_and_a_flat_line_have_a_picture_too(line):
    svg = ElementTree.fromstring(chart.line_chart("t", {"name": line}, "x", "y"))
    points = next(svg.iter(f"{SVG}polyline")).get("points").split()
    assert len(points) == len(line[1])
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= chart.WIDTH and chart.TOP <= y <= chart.HEIGHT - chart.BOTTOM


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_every_colour_can_be_read_on_light_and_dark_pages(page):
    used = set(re.findall("#[0-9a-f]{6}", chart.line_chart("t", LINES, "x", "y"))) | {*chart.COLOURS.values()}
    for colour in used:
        dark, light = sorted((luminance(colour), luminance(page)))
        contrast = (light + 0.05) / (dark + 0.05)
        assert contrast >= 3.7, f"{colour} on {page} has a contrast of {contrast:.1f}"


def test_the_title_is_text_even_where_it_looks_like_markup():
    assert picture().find(f"{SVG}title").text == "Title <1>"


def test_bars_reach_from_their_low_to_their_high_end_and_fit_into_the_picture():
    lines = {"a": ("blue", [0, 10], [0.0, 10.0])}
    svg = chart.line_chart("Title", lines, "x", "y", bars={"a": [(-20, 5), (0, 30)]})
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    bars = re.findall(r'd="M([\d.]+) ([\d.]+)V([\d.]+)"', svg)
    bars = [tuple(map(float, bar)) for bar in bars]
    assert [x for x, _ in dots] == [x for x, _, _ in bars]
    nat = (dots[0][1] - dots[1][1]) / 10  # pixels of one unit; y grows downwards
    for (_, y), (_, low, high), (below, above) in zip(dots, bars, [(20, 5), (10, 20)], strict=True):
        assert low - y == pytest.approx(below * nat, abs=0.2) and y - high == pytest.approx(
            above * nat, abs=0.2
        )
    assert max(low for _, low, _ in bars) < chart.HEIGHT - chart.BOTTOM
    assert min(high for _, _, high in bars) > chart.TOP
