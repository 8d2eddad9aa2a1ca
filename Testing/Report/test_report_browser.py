"""The page in a real browser: no errors, and the worklist sorts and filters."""

import base64
import json
import math
import re

import pytest
from browser import open_page

from replica_detection.results.result import FLAGGED


def test_opens_in_a_browser_without_errors(html, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    opened = open_page(path, tmp_path / "profile")
    assert opened.console == ()
    assert "60 of 60 shown" in opened.dom, "the page's own script ran"
    assert opened.dom.count('aria-label="sort by ') == 14


@pytest.mark.parametrize("break_it", ["script", "network"])
def test_the_browser_check_sees_errors(html, tmp_path, break_it):
    broken = {
        "script": html.replace('"use strict";', '"use strict"; missing();'),
        "network": html.replace("<h1>", '<img src="https://localhost:9/x.png" alt=""><h1>'),
    }[break_it]
    path = tmp_path / "broken.html"
    path.write_text(broken, encoding="utf-8")
    assert open_page(path, tmp_path / "profile").console


ACTIONS = """
const header = (name) => [...document.querySelectorAll("#worklist-table thead th")]
  .find((h) => h.textContent.trim().replace(/\\u200b/g, "") === name);
const ids = () => [...document.querySelectorAll("#worklist-table tbody tr")]
  .filter((r) => !r.hidden).map((r) => r.cells[1].textContent.trim());
const say = (element, value) => {
  Object.assign(element, value);
  element.dispatchEvent(new Event("input", {bubbles: true}));
};
const seen = {};
header("score").querySelector("button").click(); seen.scoreFirst = ids();
header("score").querySelector("button").click(); seen.scoreSecond = ids();
seen.sorted = header("score").getAttribute("aria-sort");
header("ssim").querySelector("button").click(); seen.ssim = ids();
header("synthetic image").querySelector("button").click(); seen.name = ids();
say(document.querySelector("input[value=novel]"), {checked: false});
say(document.querySelector("input[value=undefined]"), {checked: false}); seen.flagged = ids();
say(document.getElementById("filter-text"), {value: "  SYNTHETIC_0002 "}); seen.found = ids();
seen.count = document.getElementById("filter-count").textContent;
const out = document.createElement("pre"); out.id = "seen"; out.textContent = btoa(JSON.stringify(seen));
document.body.append(out);
"""


def test_sorting_and_filtering(result, html, tmp_path):
    # The page's policy runs no script but its own, so that the test's copy goes without one.
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    copy = copy.replace("</body>", f"<script>{ACTIONS}</script></body>")
    path = tmp_path / "index.html"
    path.write_text(copy, encoding="utf-8")
    opened = open_page(path, tmp_path / "profile")
    assert opened.console == ()
    seen = json.loads(base64.b64decode(re.search(r'<pre id="seen">([^<]+)<', opened.dom)[1]))

    scores = {c.synthetic_id: c.score for c in result.summary}
    undefined = [c.synthetic_id for c in result.summary if c.verdict == "undefined"]
    for order, sign in (("scoreFirst", -1), ("scoreSecond", 1)):
        assert len(seen[order]) == 60 and seen[order][-1:] == undefined
        values = [sign * scores[i] for i in seen[order][:-1]]
        assert values == sorted(values)
    assert seen["sorted"] == "ascending"
    ssim = {m.synthetic_id: m.ratio for m in result.matches if m.measure == "ssim"}
    values = [ssim[i] for i in seen["ssim"] if not math.isnan(ssim[i])]
    assert values == sorted(values) and len(values) == 59
    assert seen["name"] == sorted(scores)
    assert seen["flagged"] == sorted(c.synthetic_id for c in result.summary if c.verdict in FLAGGED)
    assert seen["found"] == ["synthetic_0002"] and seen["count"] == "1 of 60 shown"
