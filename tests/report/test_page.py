"""The page as a document: whole, escaped, and its numbers those of the evaluation."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from kvtool.errors import KvtoolError
from kvtool.report import plots
from kvtool.report.columns import candidates
from kvtool.report.page import page

Make = Callable[..., dict[str, Any]]

HOSTILE = (
    "</script><script>pwned()</script>",
    "\"><img src=x onerror='pwned()'>",
    "</svg></title></style><b id=broken>&amp; {{ 7 * 7 }} $x^2$ ]]>",
    "#010000 \x00\x1b[31m\ud800 \u202e evil",
)


def parsed(evaluation: dict[str, Any]) -> BeautifulSoup:
    return BeautifulSoup(page(evaluation), "html.parser")


@pytest.fixture(scope="module")
def soup(make_evaluation: Make) -> BeautifulSoup:
    return parsed(make_evaluation())


def rows_of(table: Tag) -> dict[str, list[Tag]]:
    body = table.find("tbody")
    assert body is not None
    return {row.th.get_text(): row.find_all("td") for row in body.find_all("tr")}


def test_the_main_table_has_the_evaluations_numbers(soup: BeautifulSoup, make_evaluation: Make) -> None:
    shown = candidates(make_evaluation())
    rows = rows_of(soup.select_one("#candidates table"))
    assert list(rows) == [candidate["name"] for candidate in shown]
    for candidate in shown:
        kept = candidate["retrieval"]["retention"]
        expected = [
            candidate["bits_per_value"],
            candidate["ratio"],
            candidate["memory"]["bits_per_value"],
            candidate["kl"]["value"],
            candidate["dnll"]["value"],
            candidate["top1"]["value"],
            candidate["retrieval"]["score"]["value"],
            kept["value"] if kept else None,
            candidate["answers"]["f1"]["value"],
            candidate["times"]["ttft_speedup"]["value"],
        ]
        cells = rows[candidate["name"]]
        assert [float(c["data-value"]) if "data-value" in c.attrs else None for c in cells] == expected


def test_every_id_is_there_once_and_every_reference_leads_somewhere(soup: BeautifulSoup) -> None:
    counted = Counter(tag["id"] for tag in soup.find_all(id=True))
    assert not [name for name, count in counted.items() if count > 1]
    for tag in soup.find_all(True):
        for attribute, value in tag.attrs.items():
            if attribute in ("href", "for", "aria-labelledby") and not str(value).startswith("data:"):
                assert str(value).removeprefix("#") in counted
            for name in re.findall(r"url\(#([^)]+)\)", str(value)):
                assert name in counted


def test_the_outline(soup: BeautifulSoup) -> None:
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert soup.html["lang"] == "en"
    assert [tag.name for tag in soup.body.find_all(("header", "nav", "main", "footer"))] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert soup.body.find("a")["href"] == "#main"


def test_tables_and_pictures_can_be_read_without_sight(soup: BeautifulSoup) -> None:
    for table in soup.find_all("table"):
        assert table.caption.get_text()
        assert all(head.get("scope") in ("col", "row") for head in table.find_all("th"))
    pictures = soup.find_all("svg")
    assert len(pictures) == 3 + 2 * 5
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(picture["aria-label"]) > 30
        figure = picture.find_parent("figure")
        assert figure.figcaption.get_text()
        assert figure.details.find("table")


def test_nothing_is_fetched_and_only_the_pages_own_script_may_run(soup: BeautifulSoup) -> None:
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    assert not soup.find_all(("link", "img", "iframe", "object", "embed"))
    for tag in soup.find_all(True):
        assert not [a for a in tag.attrs if a.startswith("on") or a in ("src", "srcset", "action", "ping")]
        assert str(tag.get("href", "#")).startswith(("#", "data:image/png;base64,"))
    assert "http" not in soup.find("style").get_text()


def test_pictures_follow_the_pages_colours(soup: BeautifulSoup) -> None:
    defined = set(re.findall(r"(--[\w-]+):", soup.find("style").get_text()))
    for picture in soup.find_all("svg"):
        looks = " ".join(tag["style"] for tag in picture.find_all(style=True))  # type: ignore[misc]
        assert not re.search("#[0-9a-fA-F]{3}", looks)
        assert "font-family" not in looks
        assert set(re.findall(r"var\((--[\w-]+)\)", looks)) <= defined


def position(soup: BeautifulSoup, name: str) -> tuple[float, float]:
    use = soup.find(id=name).find("use")
    return float(use["x"]), float(use["y"])


def on_axis(soup: BeautifulSoup, name: str, side: str, *, log: bool) -> Callable[[float], float]:
    """From a position to a value, by the first and the last tick of an axis."""
    found = [tag["id"] for tag in soup.find_all(id=re.compile(rf"^{name}-{side}-"))]
    values = sorted(float(text.split(f"-{side}-")[1]) for text in found if "." in text or text[-1].isdigit())
    low, high = values[0], values[-1]
    along = 0 if side == "x" else 1
    start, end = (position(soup, f"{name}-{side}-{value:.6g}")[along] for value in (low, high))
    if log:
        return lambda at: low * (high / low) ** ((at - start) / (end - start))
    return lambda at: low + (high - low) * (at - start) / (end - start)


def test_the_gates_result_is_said_in_words(soup: BeautifulSoup, make_evaluation: Make) -> None:
    assert "✕ Gate failed: 2 of 5 limits were not kept" in soup.find(class_="gate").get_text()
    rows = rows_of(soup.select_one(".verdicts table"))
    verdicts = {name: cells[-1].get_text() for name, cells in rows.items()}
    for check in make_evaluation()["gate"]:
        assert verdicts[check["candidate"]].startswith("✓ passed" if check["passed"] else "✕ failed")
        assert ("too near the limit" in verdicts[check["candidate"]]) != check["significant"]


def test_marks_lie_where_the_table_says(soup: BeautifulSoup, make_evaluation: Make) -> None:
    shown = candidates(make_evaluation())
    bits, kl = (on_axis(soup, "rate", side, log=True) for side in "xy")
    ratio, kept = on_axis(soup, "kept", "x", log=True), on_axis(soup, "kept", "y", log=False)
    for index, candidate in enumerate(shown):
        x, y = position(soup, f"rate-{index}")
        assert bits(x) == pytest.approx(candidate["bits_per_value"], rel=1e-4)
        if candidate["kl"]["value"]:
            assert kl(y) == pytest.approx(candidate["kl"]["value"], rel=1e-4)
        else:
            # A decade below the decade of the smallest: the line that is labelled 0.
            assert kl(y) == pytest.approx(1e-4)
        if candidate["kind"] != "raw":
            x, y = position(soup, f"kept-{index}")
            assert ratio(x) == pytest.approx(candidate["ratio"], rel=1e-4)
            assert kept(y) == pytest.approx(100 * candidate["retrieval"]["retention"]["value"], abs=1e-3)


def test_candidates_are_chosen_one_by_one(soup: BeautifulSoup) -> None:
    for part in ("map", "error", "answers"):
        select = soup.find(id=f"choose-{part}")
        assert soup.find("label", {"for": select["id"]}).get_text() == "Candidate"
        offered = {option["value"]: option.get_text() for option in select.find_all("option")}
        panels = select.find_parent("section").select("[data-panel]")
        assert {panel["data-panel"]: panel.find(("h3", "h4")).get_text() for panel in panels} == offered
        # Without a script all are shown.
        assert not [panel for panel in panels if "hidden" in panel.attrs]


def test_what_others_wrote_stays_text(make_evaluation: Make) -> None:
    evaluation = make_evaluation(
        candidates=tuple((text, text, "peer", 4.0 + i, 0.01) for i, text in enumerate(HOSTILE))
    )
    text = "".join(HOSTILE)
    evaluation |= {"command": text, "notes": [text], "settings": {text: text, "lengths": [text]}}
    for part, field in (("model", "name"), ("machine", "processor"), ("times", "document")):
        evaluation[part][field] = text
    evaluation["documents"][0]["name"] = text
    for candidate in evaluation["candidates"]:
        candidate |= {"summary": text, "paper": text}
        candidate["by_document"][0]["name"] = text
        for example in candidate["answers"]["examples"]:
            example |= {"document": text, "question": text, "raw": text, "answer": text}
    made = page(evaluation)
    made.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", made)
    soup = BeautifulSoup(made, "html.parser")
    assert len(soup.find_all("script")) == 1
    assert "pwned" not in soup.find("script").get_text()
    assert not soup.find_all(("img", "b"))
    assert soup.find(id="command").get_text().startswith("".join(HOSTILE[:3]))
    assert "49" not in soup.find(id="command").get_text()
    for name in HOSTILE[:3]:
        assert name in rows_of(soup.select_one("#candidates table"))
        assert name in [title.get_text().rsplit(": ", 1)[0] for title in soup.select("svg title")]


@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ("kl", "Size and loss"),
        ("retrieval", "Retrieval"),
        ("relative_error", "Where the error lies"),
        ("times", "Time"),
        ("answers", "Answers"),
    ],
)
def test_what_was_not_measured_is_left_out_and_said(
    part: str, heading: str, soup: BeautifulSoup, make_evaluation: Make
) -> None:
    evaluation = make_evaluation(candidates=(("kivi", "kivi", "recipe", 4.6, 0.02),))
    assert heading in [tag.get_text() for tag in soup.find_all("h2")]
    for candidate in evaluation["candidates"]:
        candidate[part] = None
    without = parsed(evaluation)
    assert heading not in [tag.get_text() for tag in without.find_all("h2")]
    assert without.find(class_="notes").get_text().count("Not on this page") == 1


def test_the_least_that_an_evaluation_can_hold(make_evaluation: Make) -> None:
    evaluation = make_evaluation(
        candidates=(("kivi", "kivi", "recipe", 4.6, 0.02),), gate=None, times=None, notes=[]
    )
    for candidate in evaluation["candidates"]:
        candidate |= dict.fromkeys(("kl", "dnll", "top1", "retrieval", "answers", "relative_error", "times"))
        candidate["by_document"] = []
    soup = parsed(evaluation)
    assert not soup.find_all("svg")
    assert len(rows_of(soup.select_one("#candidates table"))) == 2
    alone = make_evaluation(candidates=(), gate=[])
    assert not parsed(alone).find_all(class_="gate")
    assert [list(rows_of(table)) for table in parsed(alone).select("#candidates table")] == [["raw"]]


def test_odd_evaluations(make_evaluation: Make) -> None:
    broken = make_evaluation(
        candidates=(("zeroed", "zeroed", "recipe", 4.6, 9.5), ("same", "same", "recipe", 16.0, 0.0))
    )
    kivi = broken["candidates"][1]
    kivi["relative_error"] = {"keys": [[math.sqrt(2), 0.5], [1.0]], "values": [[0.1], [0.2, 0.3]]}
    kivi["kl"] = {"value": 9.5, "low": 9.5, "high": 9.5, "n": 1}
    kivi["retrieval"]["by_length_and_depth"] = kivi["retrieval"]["by_length_and_depth"][:1]
    del kivi["retrieval"]["tasks"]["single"]
    for candidate in broken["candidates"]:
        candidate["retrieval"]["retention"] = None
    soup = parsed(broken)
    assert "answers none of the questions" in soup.get_text()
    assert "±?" in rows_of(soup.select_one("#candidates table"))["zeroed"][3].get_text()
    exact = make_evaluation(candidates=(("same", "same", "recipe", 16.0, 0.0),))
    assert "Within a KL of 0.01" in parsed(exact).find(class_="lead").get_text()


def test_a_cache_broken_so_badly_that_nothing_is_a_number(make_evaluation: Make) -> None:
    evaluation = make_evaluation(
        candidates=(("zeroed", "zeroed", "recipe", 4.6, 0.1), ("kivi", "kivi", "recipe", 5.0, 0.02))
    )
    nan = math.nan
    zeroed = evaluation["candidates"][1]
    zeroed["kl"] = zeroed["dnll"] = {"value": nan, "low": nan, "high": nan, "n": 6}
    zeroed["relative_error"] = {side: [[nan] * 2] * 4 for side in ("keys", "values")}
    soup = parsed(evaluation)
    assert rows_of(soup.select_one("#candidates table"))["zeroed"][3].get_text().strip() == "nan"
    assert soup.find(id="rate-1") is None
    assert soup.find(id="rate-2") is not None
    assert "zeroed: keys are no numbers" in soup.find(id="figure-error-1").figcaption.get_text()


def test_the_summary_names_the_smallest_within_a_loss(make_evaluation: Make) -> None:
    rows = (
        ("a", "a", "recipe", 3.0, 0.05),
        ("b", "b", "recipe", 5.0, 0.004),
        ("c", "c", "recipe", 4.0, 0.0099),
    )
    lead = " ".join(parsed(make_evaluation(candidates=rows)).find(class_="lead").get_text().split())
    # The interval of c reaches over 0.01.
    assert "Within a KL of 0.01 nats per token the smallest is b: 5.00 bits" in lead
    assert "Within a KL of 0.1 nats per token the smallest is a: 3.00 bits" in lead


def test_the_same_evaluation_gives_the_same_page(make_evaluation: Make) -> None:
    few = (("kivi", "kivi", "recipe", 4.6, 0.02),)
    assert page(make_evaluation(candidates=few)) == page(make_evaluation(candidates=few))


def test_without_matplotlib_the_remedy_is_named(
    make_evaluation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots.require()
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    with pytest.raises(KvtoolError, match=r"pip install 'kvtool\[report\]'"):
        page(make_evaluation())


@pytest.mark.slow
def test_a_large_evaluation_stays_small(make_evaluation: Make) -> None:
    rows = tuple((f"recipe-{i}:bits=4", f"recipe-{i}", "recipe", 2.0 + i, 0.001 * 1.2**i) for i in range(24))
    large = make_evaluation(candidates=rows, layers=60, heads=16, lengths=(512, 1024, 2048), depths=5)
    assert len(page(large).encode()) < 5_000_000


def test_one_candidate_is_one(make_evaluation: Make) -> None:
    one = make_evaluation(candidates=(("kivi:bits=4", "kivi", "recipe", 5.87, 0.0042),), layers=1, heads=1)
    text = " ".join(BeautifulSoup(page(one), "html.parser").get_text().split())
    assert (
        "1 way to store the KV cache of SmolLM2-135M-Instruct (float32, 1 layer of 1 key-value head)" in text
    )
    assert "key-value head) was held against the raw cache on 2 documents" in text
    assert "Gate passed: the limit was kept" in text
    one["gate"][0]["passed"] = False
    assert "Gate failed: 1 of 1 limit was not kept" in " ".join(
        BeautifulSoup(page(one), "html.parser").get_text().split()
    )


def test_blends_alone(make_evaluation: Make) -> None:
    """Where no variant is measured there is no table of candidates."""
    estimate = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 3}
    blend = {"name": "blend of klt", "kind": "blend", "variant": "klt", "policy": "drift", "recompute": 0.15}
    blend |= {"kl": estimate, "dnll": estimate, "top1": estimate, "answers": None}
    check = {"candidate": "blend of klt", "metric": "kl", **estimate, "limit": 0.05}
    gate = [check | {"passed": False, "significant": True}]
    alone = make_evaluation(documents=[], times=None, gate=gate, blends=[blend]) | {"candidates": []}
    soup = BeautifulSoup(page(alone), "html.parser")
    assert soup.find(id="candidates") is None
    rows = soup.select('section[aria-labelledby="blends"] tbody tr')
    assert [cell.get_text() for cell in rows[0].find_all("td")] == ["0.20 ±0.10", "0.20 ±0.10", "20 ±10"]
    text = " ".join(soup.get_text().split())
    assert "1 blend of documents was held against a full prefill by SmolLM2-135M-Instruct." in text
    assert "The variant klt, 15 % of the tokens recomputed, chosen by the policy drift." in text
