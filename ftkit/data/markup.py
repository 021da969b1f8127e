"""The text of an HTML document: its words, line by line, without its tags."""

from __future__ import annotations

import re
import warnings
from html import unescape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

# Their content is no text of the page, or stands there a second time (fallbacks, the reading aids of ruby).
_DROPPED = frozenset("audio canvas datalist iframe noscript object rp rt script style svg template title video".split())
_BLOCKS = frozenset(
    "address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup option p pre search "
    "section summary table tbody tfoot thead tr ul".split()
)
_CELLS = frozenset(("td", "th"))
_KEPT = frozenset(("pre", "code"))
_SPACE = re.compile(r"[ \t\n\r\f]+")  # HTML's white space: a no-break space is none


def html_text(text: str) -> str:
    """The text of an HTML document or a part of one; a text with neither "<" nor "&" is returned as it is.

    Scripts, styles, comments, the title and what stands in for media are dropped; entities are decoded. A block element
    (p, div, li, tr, …) starts and ends a line, cells of a row are parted by a space, and other white space is one
    space, but in pre and code. Where a text holds no block element, its line breaks are the author's: they stay.

    What is decoded may be HTML again (``&lt;b&gt;`` is the text ``<b>``), so a text must be given once only.
    """
    if "<" not in text:
        return unescape(text)
    from bs4.element import PreformattedString, Tag

    page = _Page()
    soup = _parsed(text)
    laid_out = soup.find(list(_BLOCKS)) is not None
    waiting: list[tuple[object, bool]] = [(soup, not laid_out)]  # not by recursion: pages nest thousands of elements
    while waiting:
        node, kept = waiting.pop()
        if node is None:
            page.end_line()
        elif isinstance(node, Tag):
            if node.name in _DROPPED:
                continue
            if node.name == "br":
                page.add("\n", kept=True)
            elif node.name in _BLOCKS:
                page.end_line()
                waiting.append((None, kept))
            elif node.name in _CELLS:
                page.add(" ", kept=False)
            inside = kept or node.name in _KEPT
            waiting.extend((child, inside) for child in reversed(node.contents))
        elif not isinstance(node, PreformattedString):  # comments, doctypes, declarations
            page.add(str(node), kept=kept)
    return page.text(tidy=laid_out)


def _parsed(text: str) -> BeautifulSoup:
    from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning

    # Browsers take "<![" for a comment up to the next ">"; the parser refuses the document.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)  # it is asked for as HTML
        return BeautifulSoup(text.replace("<![", "<! "), "html.parser")


class _Page:
    """The lines of a page as they are written."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._last = "\n"

    def add(self, text: str, *, kept: bool) -> None:
        if not kept:
            text = _SPACE.sub(" ", text)
            if self._last in " \n":
                text = text.removeprefix(" ")
        if text:
            self._pieces.append(text)
            self._last = text[-1]

    def end_line(self) -> None:
        if self._last != "\n":
            self.add("\n", kept=True)

    def text(self, *, tidy: bool) -> str:
        """All that was added; ``tidy``: without white space at the ends of lines and empty lines around."""
        text = "".join(self._pieces)
        return "\n".join(line.rstrip(" \t\r\f") for line in text.split("\n")).strip("\n") if tidy else text
