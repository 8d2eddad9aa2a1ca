"""What a page loads from another host: for the test of the built site. Links that a person clicks are not loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_LOADING = {"src", "srcset", "poster", "data", "background", "action", "formaction", "ping", "manifest"}
_LINKS_THAT_LOAD = {
    *("stylesheet", "icon", "manifest", "modulepreload"),
    *("preload", "prefetch", "preconnect", "dns-prefetch"),
}
_ELSEWHERE = re.compile(r"(?:https?:|wss?:|ftp:)?//[^\s\"'`)<>]+", re.IGNORECASE)
_IN_SCRIPT = re.compile(r"(?:https?|wss?|ftp)://[^\s\"'`)<>]+", re.IGNORECASE)
_IN_STYLE = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:|ftp:)?//[^\s\"')]+)", re.IGNORECASE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Other comments do not survive in the scripts of a site, but strings such as "*/*" do.
_LICENCE = re.compile(r"/\*!.*?\*/", re.DOTALL)
# Names of XML vocabularies, which nothing fetches.
_NAMESPACES = re.compile(
    r"https?://www\.w3\.org/(?:1999/(?:xhtml|xlink)|2000/(?:svg|xmlns)|1998/Math/MathML|XML/1998/namespace)/?"
)


def loaded_from_elsewhere(kind: str, text: str) -> list[str]:
    """Returns the addresses on other hosts that a file loads.

    Args:
        kind: "html", "svg", "css" or "js". In a script every address counts, since nobody can say which it loads.
        text: the file.
    """
    if kind == "js":
        return _IN_SCRIPT.findall(_NAMESPACES.sub("", _LICENCE.sub("", text)))
    if kind == "css":
        return _IN_STYLE.findall(_COMMENT.sub("", text))
    page = _Page()
    page.feed(text)
    page.close()
    return page.found


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in ("script", "style") else ""
        for name, value in values.items():
            if name in _LOADING or self._loads_by_href(tag, name, values):
                self.found += _ELSEWHERE.findall(value)
            elif name == "style":
                self.found += loaded_from_elsewhere("css", value)
            elif name.startswith("on"):
                self.found += loaded_from_elsewhere("js", value)
            elif tag == "meta" and name == "content" and values.get("http-equiv", "").lower() == "refresh":
                self.found += _IN_SCRIPT.findall(value)

    @staticmethod
    def _loads_by_href(tag: str, name: str, values: dict[str, str]) -> bool:
        if name not in ("href", "xlink:href"):
            return False
        if tag == "link":
            return bool(_LINKS_THAT_LOAD & set(values.get("rel", "").lower().split()))
        return tag in ("base", "image", "use", "feimage")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found += loaded_from_elsewhere("js" if self._inside == "script" else "css", data)
