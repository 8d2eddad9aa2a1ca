"""Writing a report and taking its page apart, for tests."""

import re
from html.parser import HTMLParser
from pathlib import Path

from made_up_result import make_pairs

from replica_detection.report import write_report
from replica_detection.results.result import DetectionResult


class Page(HTMLParser):
    """A parsed page: its text, its tags with attributes, and the rows of the worklist."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.inside: list[str] = []
        self.closed_body = False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script", "svg"):
            self.inside.append(tag)
        if tag == "tr" and "data-verdict" in dict(attrs):
            self.rows.append([])
        if tag in ("td", "th") and self.rows and not self.closed_body:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()
        if tag == "tbody" and self.rows:
            self.closed_body = True

    def handle_data(self, data):
        if self.inside:
            return
        self.words.append(data)
        if self.rows and self.rows[-1] and not self.closed_body:
            self.rows[-1][-1] += data.strip()


def render(folder: Path, result: DetectionResult, pair=None, **options) -> str:
    path = write_report(result, folder / "report", pair or make_pairs((32, 32, 16)), **options)
    assert path == folder / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    return path.read_text(encoding="utf-8")


def stable(html: str) -> str:
    """The page without what matplotlib numbers anew in every drawing."""
    return re.sub(r"(e|m\d+)-[mp][0-9a-f]{10}", "", html)
