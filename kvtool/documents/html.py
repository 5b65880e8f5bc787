"""HTML as Markdown: headings, lists, tables and code stay; scripts, images and link targets go."""

from __future__ import annotations

from typing import Any
from warnings import catch_warnings, simplefilter

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, ParserRejectedMarkup, XMLParsedAsHTMLWarning
from bs4.element import PreformattedString
from markdownify import MarkdownConverter

from kvtool.errors import DocumentError

NOT_TEXT = ("script", "style", "noscript", "template", "svg")

BLOCKS = ("p", "ul", "ol", "dl", "table", "pre", "blockquote", "div", "section", "article", "hr")
CLOSED_BY = {
    **{name: {"p"} for name in (*BLOCKS, "h1", "h2", "h3", "h4", "h5", "h6")},
    "li": {"li", "p"},
    **{name: {"dt", "dd", "p"} for name in ("dt", "dd")},
    **{name: {"td", "th", "p"} for name in ("td", "th")},
    **{name: {"td", "th", "tr", "p"} for name in ("tr", "tbody", "tfoot")},
    "option": {"option"},
}
"""Open elements that a start tag ends, of those whose end tag HTML lets an author leave out."""


class Soup(BeautifulSoup):
    """Ends elements that have no end tag where HTML says they end.

    Python's parser does not: every paragraph of an old page would be nested in the one before it, a thousand
    deep, which no converter survives.
    """

    def handle_starttag(self, name: str, *args: Any, **kwargs: Any) -> Any:
        while self.currentTag is not None and self.currentTag.name in CLOSED_BY.get(name, ()):
            self.handle_endtag(self.currentTag.name)
        return super().handle_starttag(name, *args, **kwargs)


def html_text(markup: str, name: str, warnings: list[DocumentError]) -> str:
    """The title and body of a page as Markdown. A page that has a title only goes to ``warnings``.

    What a browser would print is the body, wherever it stands: an author may leave ``</head>`` and ``<body>`` out.

    Raises:
        DocumentError: the page is nested too deeply, or is no HTML.
    """
    try:
        with catch_warnings():
            simplefilter("ignore", MarkupResemblesLocatorWarning)
            simplefilter("ignore", XMLParsedAsHTMLWarning)
            soup = Soup(markup, "html.parser")
        for element in soup(NOT_TEXT):
            element.decompose()
        # Comments, and also declarations, which markdownify would print.
        for string in soup.find_all(string=lambda string: isinstance(string, PreformattedString)):
            string.extract()
        titles = [element.extract().get_text(" ", strip=True) for element in soup("title")]
        body = MarkdownConverter(
            heading_style="atx",
            bullets="-",
            strip=["a", "img", "video"],
            escape_asterisks=False,
            escape_underscores=False,
        ).convert_soup(soup)
    except RecursionError:
        reason = "its HTML elements are nested too deeply; expected a few hundred levels at most"
        raise DocumentError(name, reason, "save the page as text or Markdown instead") from None
    except ParserRejectedMarkup as error:
        reason = f"is not HTML that can be read ({str(error).splitlines()[-1].strip()}); expected a web page"
        raise DocumentError(name, reason, "save it as text or Markdown instead") from error
    title, body = titles[0] if titles else "", body.strip()
    if title and not body:
        reason = (
            f"holds nothing but its title, in {len(markup):,} characters; scripts and frames are not read"
        )
        warnings.append(DocumentError(name, reason, "save the page as a browser shows it, or leave it out"))
    return "\n\n".join(part for part in (title, body) if part)
