"""The pages of the lab report say what the CSV files say, and lead where they promise; percent, by hand."""

import re

import experiment
import language
import pytest
import report
from conftest import PROJECT

LAB = PROJECT / "tests/lab"
PAGES = sorted(path.name for path in LAB.glob("*.md"))
FIGURES = {"results": "results", "nine-arms": "results/nine-arms"}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_those_of_the_raw_results(page):
    text = (LAB / page).read_text(encoding="utf-8")
    assert report.filled(text) == text, "run `python tests/lab/report.py`"


def test_every_table_is_on_a_page():
    text = "".join((LAB / page).read_text(encoding="utf-8") for page in PAGES)
    shown = re.findall(r"<!-- table: (.+) -->", text)
    empty = {"new seeds mask", "noise steps, seed by seed"}  # their runs do not say
    assert sorted(shown) == sorted(set(report.TABLES) - empty), "each table once"


@pytest.mark.parametrize("folder", ["results", "results/nine-arms"])
def test_figures_are_those_of_the_raw_results(folder, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", LAB / folder)
    pages = "".join((LAB / page).read_text(encoding="utf-8") for page in PAGES)
    for name, svg in experiment.figures().items():
        stored = (LAB / folder / name).read_text(encoding="utf-8")
        assert stored == svg, f"{name} is older than its CSV: run `python tests/lab/experiment.py`"
        earlier = folder == "results" and name.startswith("arms-")  # the nine arms replace these
        assert earlier or f"]({folder}/{name})" in pages, f"no page shows {name}"


def test_the_border_is_that_of_the_raw_results():
    assert (LAB / "results/border.svg").read_text(encoding="utf-8") == report.border_figure()


def anchors(text: str) -> set:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = ["README.md", "tests/README.md", "tests/course/README.md", *(f"tests/lab/{page}" for page in PAGES)]


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings_that_exist(page):
    page = PROJECT / page
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to #{anchor}"


def test_the_first_page_can_be_read_in_five_minutes():
    assert len((LAB / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# ---- numbers by hand ----


def run(arm, seed, below, steps=1000, gflop=1000, easy=8, share=0.5):
    row = {"easy_words": str(easy), "noise": "0", "keys": "8", "steps": "1000", "arm": arm, "seed": str(seed)}
    row |= {"below_1_nat": str(below), "steps_made": str(steps), "gflop": str(gflop)}
    return row | {"easy_share": str(share), "learnable_accuracy": ""}


@pytest.fixture
def results(monkeypatch):
    """results([...]) makes these runs those of the made-up languages."""

    def use(rows):
        monkeypatch.setattr(report, "read", lambda path: rows if path == "language.csv" else [])

    return use


def test_steps_saved_in_percent_at_equal_steps_and_operations(results):
    # Of 120 random steps and 880 that cost a half more: 560 random ones' worth, 1,440 in all.
    rows = [run("random", seed, below) for seed, below in enumerate((800, 900))]
    rows += [run(language.LONGER, seed, below, 1440, 1440) for seed, below in enumerate((700, 900))]
    rows += [run("sample", seed, below, gflop=1440) for seed, below in enumerate((520, 620))]
    rows += [run("sample, memory", seed, below) for seed, below in enumerate((600, "never"))]
    results(rows)
    ((point, arms),) = report.points().items()
    assert point == (8, 0)
    mean, low, high, _ = report.saved(arms, "sample", "random", "steps")
    assert mean == pytest.approx(100 * (850 - 570) / 850)
    # Both have a deviation of 70.7: 280 -+ 4.3027 x 70.7
    assert low == pytest.approx(100 * (280 - 4.3027 * 70.711) / 850, abs=0.01)
    arms_without = {arm: runs for arm, runs in arms.items() if arm != language.LONGER}
    assert report.border_cells(arms_without, "sample")[1:] == ["", "random, longer: not complete"]
    # 120 + 400 x 1.5 = 720 and 120 + 500 x 1.5 = 870, against 700 and 900
    mean, *_ = report.saved(arms, "sample", language.LONGER, "operations")
    assert mean == pytest.approx(100 * (800 - 795) / 800)
    mean, *_ = report.saved(arms, "sample, memory", "random", "operations")
    assert mean == pytest.approx(100 * (850 - 800) / 850), "never counts as the last step, 1,000"
    assert report.saved(arms, "high", "random", "steps") is None, "not run"
    assert report.saved({"random": rows[:1]}, "random", "random", "steps") is None, "one run has no interval"


def test_an_arm_that_is_not_complete_has_no_percent(results):
    rows = [run("random", seed, below) for seed, below in enumerate((800, 820, 840))]
    rows += [run("sample, memory", seed, below) for seed, below in enumerate((600, 620, 640))]
    rows += [run("focal, 1", seed, below) for seed, below in enumerate((700, 720))]
    results(rows)
    high, sample, memory, teacher, distillation, focal = report.language_cells((8, 0))
    assert [high, sample, teacher, distillation] == 4 * ["not run"]
    assert memory.startswith("+24% (") and memory.endswith(report.BETTER), "820 random steps, 620 of memory"
    assert focal == "not complete", "two seeds of three"
    *_, line = report.border_table().splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:5] == ["focal, 1", "2"] and cells[6:] == ["", "", "focal, 1: not complete"], (
        "no percent, no interval"
    )


def test_distillation_on_the_first_page_has_one_teacher(monkeypatch):
    def losses(**arms):
        return [
            {"run": f"{arm.replace('_', '-')}-{seed}", "held_out_loss": loss + gap}
            for arm, loss in arms.items()
            for seed, gap in enumerate((0.0, 0.1))
        ]

    files = {
        "nine-arms/runs.csv": losses(random=5.0, kd_random=4.0),
        "more-arms/runs.csv": losses(kd_random=3.0, focal_1=5.2),  # made with another teacher
    }
    monkeypatch.setattr(report, "read", lambda path: files.get(path, []))
    *_, english = report.overview_table().splitlines()
    *_, distillation, focal = [cell.strip() for cell in english.strip("|").split("|")]
    # deviations .0707 each: an interval of 4.3027 x .0707
    assert distillation.startswith("-1.000 (-1.304 to -0.696)"), "two runs, not four"
    assert focal.startswith("+0.200 (-0.104 to +0.504)")


def test_half_correct_needs_that_step_from_all_runs(results):
    def half(arm, *steps):
        return [run(arm, seed, 900) | {"half_correct": str(step)} for seed, step in enumerate(steps)]

    rows = half("random", 800, 900) + half("sample, memory", 520, 620)
    results(rows + half("focal, 1", 700, "") + half("focal, 2", 800, "never"))
    memory, focal = report.half_correct_table().splitlines()[2:]
    # as in the first test: 280 -+ 4.3027 x 70.7, of 850
    assert [cell.strip() for cell in memory.split("|")[3:5]] == ["sample, memory", "+33% (-3 to +69)"]
    assert [cell.strip() for cell in focal.split("|")[3:5]][0] == "focal, 2", "focal, 1 has one run of two"
    assert focal.split("|")[4].strip().startswith("-6% ("), (
        "never: at the last step, 1,000; so 900 on average"
    )


def test_the_border_seed_by_seed(results):
    rows = [run("random", seed, below) for seed, below in enumerate((800, 900))]
    rows += [run("sample, memory", seed, below) for seed, below in enumerate((600, 800))]
    results(rows)
    cells = [cell.strip() for cell in report.border_seed_table().splitlines()[-1].split("|")[1:-1]]
    # Differences -200 and -100; paired t = -3 with 1 degree of freedom, Welch's t = -1.342 with 1.471.
    assert cells == ["8", "0", "sample, memory", "2", "-150 (71)", "0.205", "0.350"], "the p of scipy.stats"


def test_marks_say_better_worse_or_nothing():
    assert report.verdict_mark(1, 3, higher_is_better=True) == report.BETTER
    assert report.verdict_mark(-3, -1, higher_is_better=True) == report.WORSE
    assert report.verdict_mark(-3, -1, higher_is_better=False) == report.BETTER
    assert report.verdict_mark(-3, 1, higher_is_better=False) == report.NOTHING


def test_the_figure_has_a_dot_per_language_at_its_share_of_easy_tokens(results):
    rows = []
    for easy, share in ((2, 0.4), (17, 0.9)):
        for seed, below in enumerate((800, 900)):
            rows += [run("random", seed, below, easy=easy, share=share)]
            rows += [run("sample, memory", seed, below - 10 * easy - seed, easy=easy, share=share)]
    results(rows)
    shares, means, intervals = report.border_lines("sample, memory", noise=False)
    assert shares == [40, 90] and means == pytest.approx([100 * 20.5 / 850, 100 * 170.5 / 850])
    assert all(low < mean < high for (low, high), mean in zip(intervals, means, strict=True))
    assert report.border_lines("sample, memory", noise=True) == ([], [], [])
    svg = report.border_figure()
    assert svg.count("<circle") == 2 and "memory" in svg


def test_a_table_is_written_below_its_name_and_nothing_else_changes(monkeypatch):
    monkeypatch.setattr(report, "TABLES", {"a": lambda: "| x |\n| - |\n| 1 |", "b": lambda: "| x |\n| - |"})
    page = "One.\n\n<!-- table: a -->\n\n| old |\n| - |\n\nTwo.\n\n<!-- table: b -->\n\nThree.\n"
    made = report.filled(page)
    assert made == (
        "One.\n\n<!-- table: a -->\n\n| x |\n| - |\n| 1 |\n\nTwo.\n\n"
        f"<!-- table: b -->\n\n{report.EMPTY}\n\nThree.\n"
    )
    assert report.filled(made) == made
    at_the_end = report.filled("Four.\n\n<!-- table: a -->\n")
    assert at_the_end == "Four.\n\n<!-- table: a -->\n\n| x |\n| - |\n| 1 |\n"
    assert report.filled(at_the_end) == at_the_end
    with pytest.raises(KeyError):
        report.filled("<!-- table: c -->\n\n")
