"""The page in headless Chromium: what people see, with eyes, by keyboard, or read aloud."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kvtool.report.columns import candidates
from kvtool.report.page import page as make_page

pytestmark = pytest.mark.slow

Make = Callable[..., dict[str, Any]]

# WCAG's contrast of every text with what lies behind it, [ratio, text] where it is below 4.5.
CONTRAST = """() => {
  const parse = (css) => {
    const [r, g, b, a = 1] = css.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * under[i]);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const cells = [...document.querySelectorAll("[id^=map-] > path")].filter((p) => p.style.fillOpacity);
  const bad = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, title, .unseen, .skip")) continue;
    const look = getComputedStyle(element);
    let under = ground(element);
    if (element.closest("svg")) {
      const box = element.getBoundingClientRect();
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      const cell = cells.find((c) => {
        const r = c.getBoundingClientRect();
        return r.left < x && x < r.right && r.top < y && y < r.bottom;
      });
      if (cell) {
        const shade = parse(getComputedStyle(cell).fill);
        shade[3] = Number(getComputedStyle(cell).fillOpacity);
        under = over(shade, under);
      }
    }
    const found = ratio(over(parse(element.closest("svg") ? look.fill : look.color), under), under);
    seen += 1;
    if (found < 4.5) bad.push([found, node.data.trim().slice(0, 40)]);
  }
  return { seen, bad };
}"""


@pytest.fixture(scope="module")
def report(make_evaluation: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(make_page(make_evaluation()), "utf-8")
    return path


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The page in a window of middling size; no request, error or message may come of it."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    shown, trouble = context.new_page(), []
    shown.on("request", lambda request: trouble.append(request.url))
    shown.on("console", lambda message: trouble.append(message.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.on("dialog", lambda dialog: trouble.append(dialog.message))
    shown.goto(report.as_uri())
    yield shown
    assert [t for t in trouble if not t.startswith("data:")] == [report.as_uri()]
    context.close()


def test_asks_nothing_of_the_network(opened: Any) -> None:
    opened.wait_for_load_state("networkidle")
    fetched = "performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
    assert opened.evaluate(fetched) == 0


def test_hostile_text_does_nothing(browser: Any, make_evaluation: Make, tmp_path: Path) -> None:
    evil = "</script></title></svg></textarea><img src=x onerror=pwned=1><script>pwned=1</script><svg onload=pwned=1>"
    evaluation = make_evaluation(candidates=((evil, evil, "recipe", 4.0, 0.02),), command=evil, notes=[evil])
    for example in evaluation["candidates"][1]["answers"]["examples"]:
        example |= {"document": evil, "question": evil, "raw": evil, "answer": evil}
    path = tmp_path / "evil.html"
    path.write_text(make_page(evaluation), "utf-8")
    shown, trouble = browser.new_page(), []
    shown.on("console", lambda message: trouble.append(message.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.goto(path.as_uri())
    assert shown.evaluate("typeof pwned") == "undefined"
    assert not trouble
    assert evil in shown.inner_text("#command")
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    # All candidates, so that the strongest shades are among them.
    opened.evaluate("document.querySelectorAll('[data-panel]').forEach((p) => { p.hidden = false })")
    found = opened.evaluate(CONTRAST)
    assert found["seen"] > 500
    assert not found["bad"]


def middle(opened: Any, name: str) -> tuple[float, float]:
    box = opened.locator(f"[id='{name}']").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_marks_lie_where_the_table_says(opened: Any, make_evaluation: Make) -> None:
    shown = [c for c in candidates(make_evaluation()) if c["kl"]["value"]]
    table = {
        row.locator("th").inner_text(): [cell.get_attribute("data-value") for cell in row.locator("td").all()]
        for row in opened.locator("#candidates tbody tr").all()
    }

    def along(axis: int, low: str, high: str, at: float, log: bool) -> float:
        start, end = middle(opened, low)[axis], middle(opened, high)[axis]
        a, b = (float(tick.split("-", 2)[2]) for tick in (low, high))
        share = (at - start) / (end - start)
        return math.exp(math.log(a) + share * math.log(b / a)) if log else a + share * (b - a)

    for candidate in shown:
        index = [c["name"] for c in candidates(make_evaluation())].index(candidate["name"])
        bits, _, _, kl = (float(v) for v in table[candidate["name"]][:4])
        x, y = middle(opened, f"rate-{index}")
        # A pixel is about half a percent of bits, and one and a half of KL.
        assert along(0, "rate-x-4", "rate-x-32", x, True) == pytest.approx(bits, rel=0.01)
        assert along(1, "rate-y-0.001", "rate-y-1", y, True) == pytest.approx(kl, rel=0.03)
        x, y = middle(opened, f"kept-{index}")
        ratio, kept = (float(table[candidate["name"]][column]) for column in (1, 7))
        assert along(0, "kept-x-1", "kept-x-4", x, True) == pytest.approx(ratio, rel=0.01)
        assert along(1, "kept-y-60", "kept-y-100", y, False) == pytest.approx(100 * kept, abs=0.3)


def test_bars_are_as_long_as_the_table_says(opened: Any, make_evaluation: Make) -> None:
    shown = candidates(make_evaluation())
    start = middle(opened, "time-faster-x-0")[0]
    unit = (middle(opened, "time-faster-x-10")[0] - start) / 10
    for index, candidate in enumerate(shown):
        box = opened.locator(f"[id='time-faster-{index}']").bounding_box()
        speedup = candidate["times"]["ttft_speedup"]["value"]
        assert box["width"] / unit == pytest.approx(speedup, abs=1.5 / unit)
    encoded = [c["times"]["encode_seconds"] is not None for c in shown]
    assert [opened.locator(f"[id='time-encode-{i}']").count() == 1 for i in range(len(shown))] == encoded


def test_heat_maps_show_the_errors(opened: Any, make_evaluation: Make) -> None:
    shown = candidates(make_evaluation())
    most = max(e for c in shown for side in c["relative_error"].values() for heads in side for e in heads)
    opened.select_option("#choose-error", "2")
    for side in ("keys", "values"):
        layers = shown[2]["relative_error"][side]
        found = opened.locator(f"[id='error-2-{side}']")
        image = Image.open(io.BytesIO(found.screenshot())).convert("RGB")
        for layer, heads in enumerate(layers):
            for head, error in enumerate(heads):
                at = (image.width * (layer + 0.5) / len(layers), image.height * (head + 0.5) / len(heads))
                share = (error / most) ** 0.5
                expected = [255 + share * (full - 255) for full in (201, 90, 26)]
                assert image.getpixel(tuple(map(int, at))) == pytest.approx(expected, abs=3)


def test_retrieval_maps_show_the_scores(opened: Any, make_evaluation: Make) -> None:
    shown = candidates(make_evaluation())
    opened.select_option("#choose-map", "4")
    for side, candidate in (("raw", shown[0]), ("own", shown[4])):
        boxes = {}
        for i, cell in enumerate(candidate["retrieval"]["by_length_and_depth"]):
            found = opened.locator(f"[id='map-4-{side}-{i}']")
            assert found.locator("title").text_content() == f"{cell['score']:.2f} of 12 questions"
            shade = float(found.locator("path").evaluate("(p) => p.style.fillOpacity || 1"))
            assert shade == pytest.approx(0.7 * (1 - cell["score"]), abs=1e-3)
            boxes[cell["length"], cell["depth"]] = found.bounding_box()
        assert boxes[512, 0.0]["x"] < boxes[1024, 0.0]["x"]
        assert boxes[512, 0.0]["y"] < boxes[512, 0.5]["y"] < boxes[512, 1.0]["y"]


def test_the_table_is_sorted_by_keyboard(opened: Any) -> None:
    head = opened.locator("#candidates thead th", has_text="KL")
    button = head.get_by_role("button")
    button.focus()
    opened.keyboard.press("Enter")
    cells = opened.locator("#candidates tbody tr td:nth-child(4)")
    numbers = "(all) => all.map((cell) => Number(cell.dataset.value))"
    values = cells.evaluate_all(numbers)
    assert head.get_attribute("aria-sort") == "ascending"
    assert values == sorted(values)
    opened.keyboard.press("Space")
    values = cells.evaluate_all(numbers)
    assert head.get_attribute("aria-sort") == "descending"
    assert values == sorted(values, reverse=True)
    assert opened.locator("[aria-sort=none]").count() == opened.locator("#candidates thead th").count() - 1
    assert opened.locator("footer [role=status]").inner_text() == "sorted by KL, descending"
    # The raw cache has no share kept: it comes last, however it is sorted.
    for _ in range(2):
        opened.locator("#candidates thead th", has_text="kept").get_by_role("button").press("Enter")
        assert opened.locator("#candidates tbody th").last.inner_text() == "raw"


def test_a_candidate_is_chosen_by_keyboard(opened: Any) -> None:
    visible = "(all) => all.filter((p) => p.checkVisibility()).map((p) => p.dataset.panel)"
    panels = opened.locator("[data-panel]")
    before = opened.locator("#choose-error").input_value()
    assert panels.evaluate_all(visible) == [before] * 3
    opened.locator("#choose-error").focus()
    opened.keyboard.press("ArrowDown")
    after = opened.locator("#choose-error").input_value()
    assert after != before
    # One choice for all sections that have the candidate.
    assert opened.locator("#choose-map").input_value() == after
    assert panels.evaluate_all(visible) == [after] * 3


def test_a_keyboard_reaches_the_results_first(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the results"
    box = opened.locator(".skip").bounding_box()
    assert box["x"] >= 0
    assert opened.locator(".skip").evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"


def test_the_command_is_copied(browser: Any, report: Path, make_evaluation: Make) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    shown = context.new_page()
    shown.goto(report.as_uri())
    shown.get_by_role("button", name="Copy").press("Enter")
    shown.locator("#copied:not(:empty)").wait_for()
    assert shown.inner_text("#copied") in ("Copied", "Selected: copy it with the keyboard")
    is_copied = shown.inner_text("#copied") == "Copied"
    text = shown.evaluate("navigator.clipboard.readText()" if is_copied else "getSelection().toString()")
    assert text == make_evaluation()["command"]
    context.close()


def test_what_a_screen_reader_is_told(opened: Any) -> None:
    tree = opened.locator("body").aria_snapshot()
    for role in ("banner", "main", "contentinfo", 'navigation "Contents"'):
        assert f"- {role}:" in tree
    assert tree.count("[level=1]") == 1
    assert '- table "All candidates, the raw cache first, then by bits per value":' in tree
    assert 'columnheader "KL"' in tree
    assert 'rowheader "kivi:bits=4"' in tree
    assert '- img "Chart of KL against bits per value, both axes logarithmic"' in tree
    assert 'figure "Left and low is better. Within a KL' in tree
    assert 'combobox "Candidate"' in tree


@pytest.mark.parametrize("width", [360, 768])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 700})
    opened.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    scrolled = "(all) => all.filter((b) => b.scrollWidth > b.clientWidth).length"
    boxes = opened.locator(".scroll").evaluate_all(scrolled)
    assert boxes > 0 if width == 360 else boxes >= 0
    # What scrolls can be reached by keyboard.
    assert opened.locator(".scroll:not([tabindex='0'])").count() == 0


def test_without_a_script_everything_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(report.as_uri())
    assert shown.locator("[data-panel]").count() == shown.locator("[data-panel]:visible").count() > 10
    assert shown.locator("button:visible, select:visible").count() == 0
    context.close()


def test_print_is_black_on_white_and_whole(opened: Any) -> None:
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert opened.locator("nav").is_hidden()
    # A4 between margins of 1 cm.
    opened.set_viewport_size({"width": 718, "height": 1000})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 718
