"""HTML pages as the tests read them: well-formed, of one file, asking for nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
SVG_VOID = {"path", "rect", "line", "circle"}  # written <path/>


class Document(HTMLParser):
    """Checks that every element is closed where it should be; keeps tags, attributes, text and table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.marks: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        assert tag not in SVG_VOID
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.marks.append(dict(attrs).get("class") or "")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The last row of a table that begins so."""
        return next(row for row in reversed(self.rows) if row[0] == name)


def check_self_contained(text: str) -> Document:
    """Checks that a page loads and runs nothing, and that its pictures have words; returns it."""
    document = Document(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(document.tags)
    for _tag, name, value in document.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            assert value.startswith("data:image/png;base64,")
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//\w|@import|url\(", outside)
    for _tag, name, value in document.attributes:
        if name in ("alt", "aria-label"):
            assert len(value) > 10
    assert sum(tag == "svg" for tag in document.tags) == sum(n == "aria-label" for _, n, _ in document.attributes)
    assert sum(tag == "img" for tag in document.tags) == sum(n == "alt" for _, n, _ in document.attributes)
    return document
