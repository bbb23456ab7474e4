"""Markdown that strangers wrote, as HTML that may stand on our pages."""

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_TAGS = {"p", "br", "em", "strong", "code", "pre", "a", "ul", "ol", "li", "blockquote", "hr"}
"""No headings, which would break into those of the page, and no pictures, which would load."""

_LONGEST = 20_000
"""Letters that are read: ten times what a card may hold."""

# HTML in the text is text; what the parser makes is sanitised all the same
_PARSER = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).disable(
    ["image", "heading", "lheading", "html_block", "html_inline"]
)


def as_html(text: object) -> Markup:
    r"""The text as HTML of a few plain elements; links only to the web, and without endorsement.

    >>> as_html("*a* <b> [x](javascript:y)")
    Markup('<p><em>a</em> &lt;b&gt; [x](javascript:y)</p>\n')
    """
    made = _PARSER.render(str(text)[:_LONGEST])
    return Markup(  # noqa: S704 - sanitised here
        nh3.clean(
            made,
            tags=_TAGS,
            attributes={"a": {"href"}},
            url_schemes={"https", "http"},
            link_rel="nofollow noopener noreferrer",
        )
    )
