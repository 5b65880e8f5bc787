"""The page at ``/`` in headless Chromium: what people do with it, by mouse and by keyboard."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import kvtool
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service

pytestmark = pytest.mark.slow

TOKENS = {"a-token-that-is-long": "ada", "another-token-as-long": "bob"}
ANSWER_TOKENS = 24


LACKING = ("/v1/documents", "/v1/cachedContents")


@pytest.fixture
def served_page(service: Service) -> Iterator[Callable[..., str]]:
    """The page's address on a server of its own, within this process."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(tokens: dict[str, str] | None = None, *, uploads: bool = True) -> str:
        app = create_app(service, tokens)
        if not uploads:
            app.router.routes[:] = [r for r in app.router.routes if not r.path.startswith(LACKING)]
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def opened(browser: Any, service: Service, served_page: Callable[..., str]) -> Iterator[Any]:
    """The page with three documents. Nothing may go wrong in its console, and nobody else be asked for anything."""
    service.planner.answer_tokens = ANSWER_TOKENS
    address = served_page()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    shown, trouble = context.new_page(), []
    shown.set_default_timeout(20_000)
    # What the server refuses, which the page says too, is no trouble of the page's.
    shown.on("console", lambda message: "status of 400" in message.text or trouble.append(message.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.on("request", lambda request: request.url.startswith(address) or trouble.append(request.url))
    shown.goto(address)
    shown.locator("tbody tr").nth(2).wait_for()
    yield shown
    context.close()
    assert not trouble


def names(opened: Any) -> list[str]:
    return [str(name) for name in opened.locator("tbody bdi").all_inner_texts()]


def upload(opened: Any, name: str, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    opened.set_input_files("#files", {"name": name, "mimeType": "text/plain", "buffer": data})


# WCAG's contrast of every text with what lies behind it, [ratio, text] where it is below 4.5.
CONTRAST = """() => {
  const parse = (css) => { const [r, g, b, a = 1] = css.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = (rgb) => {
    const part = rgb.slice(0, 3).map((v) => (v <= 10 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ground = (element) => {
    const colour = parse(getComputedStyle(element).backgroundColor);
    return colour[3] ? colour : ground(element.parentElement);
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("noscript, .unseen, .skip")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    texts.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data.trim().slice(0, 40)]);
  }
  return { seen: texts.length, bad: texts.filter(([ratio]) => ratio < 4.5) };
}"""


def test_documents_are_listed_and_sorted_by_keyboard(opened: Any, service: Service) -> None:
    for name, hours in (("a", 4), ("b", 2), ("c", 3)):
        committed = time.time() - 3600 * hours - 60
        os.utime(f"kv-store/manifests/docs/{name}.txt.json", (committed, committed))
    service.tenants[""].hits["docs/b.txt"] = 7
    opened.reload()
    opened.locator("tbody tr").nth(2).wait_for()
    assert names(opened) == ["docs/a.txt", "docs/b.txt", "docs/c.txt"]
    row = opened.locator("tbody tr").nth(1).locator("td").all_inner_texts()
    assert row[0] == "71"
    assert re.fullmatch(r"\d+ kB", row[1])
    assert row[2] == f"raw {row[1]}"
    assert row[3:] == ["7", "2 h"]
    opened.get_by_role("button", name="Age").press("Enter")
    assert names(opened) == ["docs/b.txt", "docs/c.txt", "docs/a.txt"]
    opened.get_by_role("button", name="Age").press("Space")
    assert names(opened) == ["docs/a.txt", "docs/c.txt", "docs/b.txt"]
    assert opened.locator("[aria-sort=descending]").inner_text().startswith("Age")
    assert opened.locator("#said").inner_text() == "sorted by Age, descending"
    opened.get_by_label("Filter by name").fill("B.TXT")
    assert opened.locator("tbody tr:visible").count() == 1


def test_answers_with_and_without_caches_stand_side_by_side(opened: Any) -> None:
    opened.get_by_label("docs/a.txt").check()
    assert opened.locator("#chosen").inner_text() == "Over docs/a.txt."
    opened.get_by_label("Question", exact=True).fill("How many ships are there?")
    for name, button in (("with", "Ask"), ("without", "Ask without caches")):
        opened.get_by_role("button", name=button, exact=True).click()
        opened.locator(f"#{name} .answer[aria-busy=false]").wait_for(state="attached")
        assert re.fullmatch(
            r"[\d.]+ m?s to the first token", opened.locator(f"#{name} .first-token").inner_text()
        )
    cached, anew = (opened.locator(f"#{name} .facts").inner_text() for name in ("with", "without"))
    assert re.match(r"[1-9]\d* of \d+ prompt tokens from caches", cached)
    assert re.match(r"0 of \d+ prompt tokens from caches", anew)
    assert opened.locator("#with .answer").inner_text() == opened.locator("#without .answer").inner_text()
    assert re.search(r"[\d.]+ times (sooner|later)", opened.locator("#verdict").inner_text())


def test_an_answer_comes_bit_by_bit_and_can_be_stopped(opened: Any, service: Service) -> None:
    service.planner.answer_tokens = 1500
    opened.evaluate("""() => {
      window.grown = [];
      const answer = document.querySelector("#with .answer");
      new MutationObserver(() => grown.push(answer.textContent.length)).observe(answer, { childList: true });
    }""")
    opened.get_by_label("Question", exact=True).fill("How many ships are there?")
    opened.get_by_label("Question", exact=True).press("Control+Enter")
    opened.locator("#with .answer", has_text=re.compile(r".{5}", re.DOTALL)).wait_for()
    assert opened.locator("#with .answer").get_attribute("aria-busy") == "true"
    opened.get_by_role("button", name="Stop").click()
    opened.get_by_text("Stopped.").wait_for()
    grown = opened.evaluate("grown")
    assert len(set(grown)) > 3
    assert grown == sorted(grown)
    assert opened.locator("#stop").get_attribute("aria-disabled") == "true"


def test_an_upload_is_watched_asked_and_removed(opened: Any) -> None:
    seen: list[str] = []
    opened.expose_function("tell", lambda text: seen.append(text))
    opened.evaluate("""() => new MutationObserver(() => tell(document.getElementById("uploads").textContent))
      .observe(document.getElementById("uploads"), { childList: true, subtree: true })""")
    upload(opened, "notes.md", "Nine geese walk to the mill in the evening. " * 3)
    opened.get_by_text(re.compile(r"✓ ready, 13\d tokens")).wait_for()
    assert any(re.search(r"\d+ of 13\d tokens", text) for text in seen)
    assert opened.locator("#said").inner_text() == "notes.md is ready"
    opened.get_by_label("notes.md", exact=True).check()
    opened.get_by_label("Question", exact=True).fill("How many geese?")
    with opened.expect_request("**/v1/chat/completions") as asked:
        opened.get_by_role("button", name="Ask", exact=True).click()
    sent = asked.value.post_data_json
    assert re.fullmatch(r"cachedContents/[\w-]+", sent["cached_content"])
    assert "documents" not in sent
    opened.locator("#with .answer[aria-busy=false]").wait_for(state="attached")
    assert re.match(r"1[2-9]\d of", opened.locator("#with .facts").inner_text())
    opened.once("dialog", lambda dialog: dialog.accept())
    opened.get_by_role("button", name="Remove notes.md").press("Enter")
    opened.get_by_label("notes.md", exact=True).wait_for(state="detached")
    assert opened.evaluate("document.activeElement.id") == "list"
    assert opened.locator("#chosen").inner_text().startswith("Over no document")


def test_what_is_left_of_an_upload_is_not_offered(opened: Any, service: Service) -> None:
    path = Path("cachedContents/left")
    path.parent.mkdir()
    path.write_text("Nine geese walk to the mill.")
    store = service.tenants[""].store
    prefilling = service.scheduler.call(lambda: kvtool.prefill([str(path)], model=service.model, store=store))
    assert not prefilling.result().problems
    opened.reload()
    opened.locator("tbody tr").nth(2).wait_for()
    assert names(opened) == ["docs/a.txt", "docs/b.txt", "docs/c.txt"]


def test_a_file_that_is_no_text_is_refused(opened: Any) -> None:
    upload(opened, "photo.jpg", b"\xff\xd8\xff")
    opened.get_by_text("✕ This is not a text file in UTF-8.").wait_for()


def test_files_can_be_dropped(opened: Any) -> None:
    opened.evaluate("""() => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File(["Seven swans swim by. ".repeat(3)], "swans.txt"));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }""")
    opened.get_by_label("swans.txt", exact=True).wait_for()


def test_charts_draw_what_stats_say(opened: Any) -> None:
    opened.get_by_label("docs/a.txt").check()
    opened.get_by_label("Question", exact=True).fill("How many?")
    opened.get_by_role("button", name="Ask", exact=True).click()
    chart = opened.get_by_role("img", name=re.compile(r"Time to first token: cached \d"))
    chart.wait_for()
    assert "not cached none yet" in chart.get_attribute("aria-label")
    assert chart.locator(".dots.series-1").get_attribute("d").startswith("M")
    memory = opened.get_by_role("img", name="Memory of caches")
    assert memory.locator(".line").get_attribute("d").count("L") >= 1
    assert opened.locator(".scale").nth(2).inner_text() == "268 MB"


def test_what_the_server_refuses_is_said(opened: Any) -> None:
    opened.get_by_label("Question", exact=True).fill("word " * 1000)
    opened.get_by_role("button", name="Ask", exact=True).click()
    opened.get_by_text("✕ This model's maximum context length is 2048 tokens").wait_for()


def test_the_keyboard_alone_does_it_all(opened: Any) -> None:
    reached = []
    for _ in range(40):
        opened.keyboard.press("Tab")
        reached.append(
            opened.evaluate("""() => {
              const e = document.activeElement;
              const shown = getComputedStyle(e).outlineStyle !== "none";
              return [e.id || e.dataset.sort || e.type || e.tagName, shown];
            }""")
        )
        if reached[-1][0] == "checkbox":
            opened.keyboard.press("Space")
        if reached[-1][0] == "question":
            opened.keyboard.type("How many?")
        if reached[-1][0] == "submit":
            opened.keyboard.press("Enter")
            break
    where = [name for name, _ in reached]
    assert where[0] == "A"
    for name in ("filter", "list", "label", "age", "checkbox", "files", "question"):
        assert name in where
    assert all(shown for _, shown in reached)
    opened.locator("#with .answer[aria-busy=false]").wait_for(state="attached")
    assert opened.locator("#chosen").inner_text() == "Over docs/a.txt, docs/b.txt, docs/c.txt."
    # The button that was pressed is where the keyboard still is.
    assert opened.evaluate("document.activeElement.textContent") == "Ask"


def test_what_a_screen_reader_is_told(opened: Any) -> None:
    unnamed = """() => [...document.querySelectorAll("input, textarea, button, progress")].filter((e) =>
      !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML)"""
    assert opened.evaluate(unnamed) == []
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    tree = opened.locator("body").aria_snapshot()
    for role in ("banner", "main", "contentinfo", 'region "Ask"', 'textbox "Question"'):
        assert f"- {role}" in tree
    assert tree.count("[level=1]") == 1
    assert 'rowheader "docs/a.txt"' in tree
    assert opened.locator("#with .answer").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert opened.evaluate("getComputedStyle(document.querySelector('rect')).transitionDuration") == "0s"
    upload(opened, "photo.jpg", b"\xff\xd8\xff")
    upload(opened, "notes.md", "Nine geese walk to the mill.")
    opened.get_by_label("notes.md", exact=True).check()
    opened.locator("#access summary").click()
    opened.get_by_label("Question", exact=True).fill("How many?")
    for name, button in (("with", "Ask"), ("without", "Ask without caches")):
        opened.get_by_role("button", name=button, exact=True).click()
        opened.locator(f"#{name} .answer[aria-busy=false]").wait_for(state="attached")
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    found = opened.evaluate(CONTRAST)
    assert found["seen"] > 60
    assert not found["bad"]


@pytest.mark.parametrize("width", [360, 768])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 700})
    upload(opened, "a-name-" + "without-any-end-" * 8 + ".md", "Nine geese walk to the mill.")
    opened.get_by_text("✓ ready").wait_for()
    opened.get_by_label("Question", exact=True).fill("How many?")
    opened.get_by_role("button", name="Ask", exact=True).click()
    opened.locator("#with .answer[aria-busy=false]").wait_for(state="attached")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_a_token_is_asked_for_and_kept_in_the_tab(
    browser: Any, service: Service, served_page: Callable[..., str]
) -> None:
    service.tenants = dict.fromkeys(TOKENS.values(), service.tenants[""])
    shown = browser.new_page()
    shown.goto(served_page(TOKENS))
    shown.get_by_text("expected a header Authorization").wait_for()
    shown.get_by_label("Token of this server").fill(next(iter(TOKENS)))
    shown.get_by_role("button", name="Use").press("Enter")
    shown.get_by_label("docs/a.txt").wait_for()
    assert shown.locator("#problem").inner_text() == ""
    assert shown.locator("#charts").is_hidden()
    assert shown.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    shown.close()


def test_parts_that_the_server_lacks_are_hidden(browser: Any, served_page: Callable[..., str]) -> None:
    shown, asked = browser.new_page(), []
    shown.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    shown.goto(served_page(uploads=False))
    shown.get_by_role("heading", name="served").wait_for()
    shown.locator("#documents").wait_for(state="hidden")
    shown.get_by_label("Question", exact=True).fill("How many?")
    shown.get_by_role("button", name="Ask", exact=True).click()
    shown.locator("#with .answer[aria-busy=false]").wait_for(state="attached")
    # The list is asked for again after an answer, what is not there only once.
    shown.wait_for_timeout(300)
    assert asked.count("documents") == asked.count("cachedContents") == 1
    shown.close()


def test_hostile_names_and_answers_are_text(browser: Any, served_page: Callable[..., str]) -> None:
    shown, trouble = browser.new_page(), []
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.goto(served_page())
    evil = "<img src=x onerror=pwned=1>.md"
    upload(shown, evil, "</td><script>pwned=1</script> and so on, and so on.")
    shown.get_by_label(evil, exact=True).check()
    assert evil in shown.locator("#chosen").inner_text()
    assert shown.evaluate("typeof pwned") == "undefined"
    assert not trouble
    shown.close()
