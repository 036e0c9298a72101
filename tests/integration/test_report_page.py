"""`dmtg report`: the page in a real browser, with a few tasks and with a thousand."""

import json

import pytest
from axe_core_python.selenium import Axe
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from model.tasks.spec import TaskSpec
from tests.browser import start_browser
from tests.runs import write_run
from trainer.report.page import MAX_BYTES, write_page

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
DATA = '<script id="content" type="application/json">'
FRAMES = 12


def content_of(page):
    text = page.read_text()
    start = text.index(DATA) + len(DATA)
    return json.loads(text[start : text.index("</script>", start)])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from start_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def page(run, dmtg):
    """Of the run of the end-to-end test: 6 tasks, 3 of them dense, 3 branches."""
    end = dmtg("report", run[0], "--json")
    assert end.code == 0, end.stderr
    path = run[0] / "report.html"
    assert json.loads(end.stdout.splitlines()[-1]) == {"report": str(path)}
    return path


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1000 tasks on 8 branches; the folder and a unit look like HTML."""
    folder = tmp_path_factory.mktemp("thousand") / "<b onclick=alert(1)>"
    first = TaskSpec("metres", "regression", unit=EVIL)
    tasks = [first, *(TaskSpec(f"task {n:04d} {'ab'[n % 2]}", "binary") for n in range(1, 1000))]
    write_run(folder, tasks, 8)
    path = folder.parent / "page.html"
    write_page([folder], path, use_data=False)
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two recipes with three seeds each, in one page."""
    folder = tmp_path_factory.mktemp("several")
    tasks = [TaskSpec(name, "binary") for name in ("better", "worse", "noise")]
    runs = []
    for recipe, errors in (("multitask", (0.3, 0.3, 0.3)), ("affinity", (0.1, 0.5, 0.3))):
        for seed in range(3):
            values = [errors[0] + 0.01 * seed, errors[1], errors[2] + (seed - 1) * 0.1]
            if recipe == "multitask":
                values[2] = 0.3
            out = folder / f"{recipe}-{seed}"
            runs.append(write_run(out, tasks, 3, seed=seed, recipe=recipe, errors=values))
    path = folder / "page.html"
    write_page(runs, path, use_data=False)
    return path


def test_the_page_needs_no_network_and_is_small(page, thousand, several):
    for path in (page, thousand, several):
        assert path.stat().st_size < MAX_BYTES
        text = path.read_text()
        assert "default-src 'none'" in text and "unsafe-eval" not in text
        assert "<script src" not in text and '<link rel="stylesheet"' not in text


def test_the_page_shows_the_run(page, browser, records):
    browser.open(page)
    assert browser.problems() == []
    last = [r for r in records if r["kind"] == "eval"][-1]["metrics"]
    shown = content_of(page)["runs"][0]
    names = [task["name"] for task in content_of(page)["task_sets"][0]]
    assert dict(zip(names, shown["metrics"], strict=True)) == {
        task: pytest.approx(values, rel=1e-4) for task, values in last.items()
    }
    assert set(browser.texts("#task-table tbody th")) == set(last)
    assert all(value is not None for value in shown["constants"]), "the data were read"
    assert shown["history"]["recorded"] and shown["history"]["steps"][-1] == 40
    chips = browser.texts(".chip")
    assert sorted(chips) == sorted(last)
    pictures = browser.js("return [...document.images].every((i) => i.naturalWidth > 0)")
    assert pictures and len(browser.all(".sample .pictures img")) >= 18
    assert "seed: 5" in browser.texts("#config-text")[0]


def test_the_slider_moves_the_picture_and_the_chips(thousand, browser):
    browser.open(thousand)
    slider = browser.one("#step")
    end, boxes = browser.pixels("#grid"), browser.texts("#branches h4")
    assert slider.get_attribute("max") == str(FRAMES - 1)
    assert [text.split(" ", 2)[2] for text in boxes] == ["125 tasks"] * 8
    slider.send_keys(Keys.HOME)
    assert browser.texts("#step-text") == ["5 of 60"]
    assert slider.get_attribute("aria-valuetext") == "step 5 of 60"
    begin = browser.pixels("#grid")
    assert begin != end
    # 1/8 + 7/8 * 5/40 = 0.234.
    chip = browser.one(".chip")
    assert "probability 0.23" in chip.get_attribute("aria-label")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.texts("#step-text") == ["10 of 60"]
    assert browser.pixels("#grid") not in (begin, end)


def test_play_moves_through_the_whole_history(thousand, browser):
    browser.open(thousand)
    end = browser.pixels("#grid")
    button = browser.one("#play")
    button.send_keys(Keys.SPACE)
    assert button.text == "Pause" and browser.pixels("#grid") != end
    browser.wait(lambda: button.text == "Play")
    assert browser.texts("#step-text") == ["60 of 60"] and browser.pixels("#grid") == end


def test_search_and_branch_filter_every_part(thousand, browser):
    browser.open(thousand)
    grid, heat = browser.pixels("#grid"), browser.pixels("#affinity-map")
    browser.one("#search").send_keys("TASK 012")
    assert browser.texts("#count") == ["10 of 1000 tasks"]
    expected = {f"task {n:04d} {'ab'[n % 2]}" for n in range(120, 130)}
    assert set(browser.texts(".chip")) == expected
    assert set(browser.texts("#task-table tbody th")) == expected
    assert browser.pixels("#grid") != grid and browser.pixels("#affinity-map") != heat
    browser.one("#branch").send_keys("3")
    assert browser.texts("#count") == ["1 of 1000 tasks"]
    assert browser.texts(".chip") == ["task 0123 b"]
    browser.one("#search").send_keys(" nothing")
    assert browser.texts("#count") == ["0 of 1000 tasks"]
    assert browser.texts("#task-table .pager span") == ["No task matches the filter."]
    assert browser.problems() == []


def test_the_table_sorts_and_turns_pages(thousand, browser):
    browser.open(thousand)
    assert len(browser.texts("#task-table tbody tr")) == 25
    header = browser.one("#task-table thead button")
    header.send_keys(Keys.ENTER)
    first = browser.texts("#task-table tbody th")
    assert first == ["metres", *(f"task {n:04d} {'ab'[n % 2]}" for n in range(1, 25))]
    header.send_keys(Keys.ENTER)
    assert browser.one("#task-table th").get_attribute("aria-sort") == "descending"
    assert browser.texts("#task-table tbody th")[0] == "task 0999 b"
    browser.all("#task-table .pager button")[1].send_keys(Keys.ENTER)
    assert browser.texts("#task-table .pager span") == ["26 to 50 of 1000"]
    assert browser.texts("#task-table tbody th")[0] == "task 0974 a"


def test_a_task_is_opened_with_the_keyboard(thousand, browser):
    browser.open(thousand)
    chip = next(c for c in browser.all(".chip") if c.text == "metres")
    chip.send_keys(Keys.ENTER)
    browser.wait(browser.drawn)
    focused = browser.driver.switch_to.active_element
    assert focused.get_attribute("id") == "detail-title" and focused.text == "metres"
    assert "Highest affinities: task 0008 a (0.8)" in browser.one("#detail-text").text
    assert EVIL in browser.texts("#detail")[0], "the unit is text"
    assert browser.problems() == []
    focused.send_keys(Keys.ESCAPE)
    assert not browser.one("#detail").is_displayed()


def test_pictures_are_read_with_the_arrow_keys(thousand, browser):
    browser.open(thousand)
    grid = browser.one("#grid")
    grid.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    name = browser.texts(".chip")[0]
    assert browser.texts("#grid-readout") == [f"{name}: branch 1 has probability 0.00"]
    heat = browser.one("#affinity-map")
    heat.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "0.8, on the same branch" in browser.texts("#affinity-readout")[0]
    ActionChains(browser.driver).move_to_element_with_offset(heat, 10, -100).perform()
    assert " and " in browser.texts("#affinity-readout")[0]


def rows_of(browser, table):
    """The texts of a table by the first cell."""
    rows = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in browser.all(f"{table} tbody tr")
    ]
    return {row[0]: row[1:] for row in rows}


def test_the_evidence_of_a_thousand_tasks(thousand, browser):
    """The tasks with even numbers have a margin of 25 % with a small error, the others a large."""
    browser.open(thousand)
    notes = browser.texts("#evidence-note p")
    assert notes[0].startswith("Margins: 500 of 1000 tasks: the chosen branch is better")
    assert notes[1].startswith("The groups are NOT firm") and "at 0.40" in notes[1]
    assert "not that these groups beat others" in notes[2]
    facts = dict(zip(browser.texts("#facts dt"), browser.texts("#facts dd"), strict=True))
    assert facts["Firm groups"] == "noagreement with resampled steps 0.40, of at most 1"
    browser.one("#search").send_keys("task 002")
    rows = rows_of(browser, "#evidence-table")
    assert len(rows) == 10
    for name, (branch, margin, error, _, verdict, firmness) in rows.items():
        number = int(name.split()[1])
        assert int(branch) == number % 8 and firmness == "0.90"
        assert float(margin.removesuffix(" %")) == pytest.approx(25, abs=7)
        assert verdict == ("may be chance" if number % 2 else "better beyond chance")
        assert (float(error.removesuffix(" %")) > 10) == bool(number % 2)
    pictures = browser.all("#evidence-table .interval")
    first, second = (p.find_element("css selector", ".range") for p in pictures[:2])
    ends = [float(first.get_attribute(x)) for x in ("x1", "x2")]
    assert 75 < ends[0] < ends[1] and float(second.get_attribute("x1")) > 0
    header = browser.all("#evidence-table thead button")[-1]
    header.send_keys(Keys.ENTER)
    assert browser.problems() == []


def test_the_heat_map_shows_co_assignments_too(thousand, browser):
    browser.open(thousand)
    affinity = browser.pixels("#affinity-map")
    assert "combination" in browser.texts("#affinity-note")[0]
    browser.one("#matrix").send_keys("co")
    heat = browser.one("#affinity-map")
    assert browser.pixels("#affinity-map") != affinity
    assert browser.texts("#affinity-note")[0].startswith("How often two tasks shared a group")
    assert browser.texts("#affinity-caption")[0].startswith("Co-assignment of 1000 tasks")
    assert "Heat map of the co-assignments" in heat.get_attribute("aria-label")
    assert browser.texts("#affinity-scale") == ["01"]
    heat.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "0.95, on the same branch" in browser.texts("#affinity-readout")[0]
    browser.one("#matrix").send_keys("aff")
    assert "0.8, on the same branch" in browser.texts("#affinity-readout")[0]
    assert browser.problems() == []


def test_a_recipe_without_warm_up_has_no_firmness(page, browser):
    """Its recipe has margins and no warm-up: no firmness, and one matrix at most."""
    browser.open(page)
    assert not browser.one("#matrix-label").is_displayed()
    assert browser.texts("#evidence-table thead th")[-1] == "Verdict"
    assert "Firm groups" not in browser.texts("#facts dt")


def test_nothing_of_a_name_is_read_as_html(thousand, browser):
    browser.open(thousand)
    assert browser.texts("h1") == ["<b onclick=alert(1)>"]
    assert browser.driver.title == "<b onclick=alert(1)> · dmtg report"
    assert browser.all("b") == [] and browser.all("img[src=x]") == []
    assert thousand.read_text().count("</script>") == 3


def test_several_runs_are_compared(several, browser):
    browser.open(several)
    assert browser.problems() == []
    assert len(browser.all("#run option")) == 6
    assert "multitask-0" in browser.texts("#comparison tbody th")[0]
    note = browser.texts("#comparison-body p[aria-live]")[0]
    assert "affinity minus multitask" in note and "Paired by seed (0, 1, 2)" in note
    rows = {
        text[0]: text
        for text in (
            [cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in browser.all("#difference-table tbody tr")
        )
    }
    assert rows["better"][2] == "-0.2" and rows["better"][5] == "better"
    assert rows["worse"][2] == "0.2" and rows["worse"][5] == "worse"
    # 0.1 / sqrt(3) times 4.303, the quantile of Student's t with 2 degrees of freedom.
    assert rows["noise"][3] == "0.25" and rows["noise"][5] == "not distinguishable"
    browser.one("#run").send_keys("affinity-2")
    assert "seed 2" in browser.texts("#facts")[0]


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    width, scheme, page, thousand, several, browser, tmp_path
):
    for number, path in enumerate((page, thousand, several)):
        browser.open(path, width, scheme)
        assert browser.js("return document.documentElement.scrollWidth;") <= width
        assert browser.problems() == []
        browser.screenshot(tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            corner = image.convert("L").getpixel((2, 2))
        assert corner < 60 if scheme == "dark" else corner > 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules(scheme, page, several, browser):
    for path in (page, several):
        browser.open(path, 1280, scheme)
        browser.all("#task-table tbody button")[0].click()
        browser.wait(browser.drawn)
        found = Axe().run(browser.driver)["violations"]
        listed = [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
        assert listed == []
