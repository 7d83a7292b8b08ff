"""Texts from artifacts in Markdown and YAML: they show as they are, and nothing else."""

from __future__ import annotations

import html
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwdctl.core.plain_text import plain_text
from lwdctl.sharing.card import Raw, code_line, escape, finish, table

EVIL = [
    "<script>alert(1)</script>", "[a](javascript:alert(1))", "![x](http://evil/x.png)", "**bold**",
    "`code`", "a | b | c", "# heading", "- item", "1. item", "> quote", "---", "===", "```", "~~~",
    "&lt;b&gt;", "a\n\n# heading", "http://evil.example", "www.evil.example", "me@evil.example",
    "\x1b[31mred", "\u202ereversed", "$$x$$", ":smile:", "a_b_c", "\\", "    code", "\ttab",
    "<!-- hidden", "[x]: http://evil", "+ item", "* item", "|", "2) item", "~~struck~~",
]  # fmt: skip


@pytest.fixture(scope="module")
def rendered():
    """Return a function from Markdown to HTML, with tables and links as the Hub has them."""
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    renderer = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(
        ["table", "strikethrough"]
    )
    return renderer.render


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("frame", ["{}", "before {} after", "# {}", "- {}: more"])
def test_no_text_becomes_markup(rendered, text, frame):
    page = rendered(frame.format(escape(text)))
    tags = set(re.findall(r"<(/?\w+)", page))
    plain = set(re.findall(r"<(/?\w+)", rendered(frame.format("word"))))
    assert tags == plain, page
    shown = html.unescape(re.sub(r"<[^>]*>", "", page)).strip()
    assert plain_text(text).strip() in shown


@pytest.mark.parametrize("text", EVIL)
def test_no_text_leaves_its_cell(rendered, text):
    page = rendered(table(("name", text), [(text, "1"), ("other", text)]))
    assert page.count("<tr>") == 3
    assert page.count("<td>") == 4
    assert page.count("<th>") == 2
    tags = set(re.findall(r"<(/?\w+)", page))
    assert tags <= {
        f"{s}{t}" for s in ("", "/") for t in ("table", "thead", "tbody", "tr", "th", "td")
    }


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_shows_itself(rendered, text):
    page = rendered(f"x {escape(text)} x")
    assert page.count("<") == 2, page
    shown = html.unescape(page.removeprefix("<p>").removesuffix("</p>\n"))
    assert shown.split() == f"x {plain_text(text)} x".split()


@pytest.mark.parametrize("text", ["```", "~~~", "````\n```", "x\n```\n# out", "``` ```"])
def test_no_line_ends_a_block_of_code(rendered, text):
    page = rendered(f"```\nfirst\n{code_line(text)}\n```\n\nafter\n")
    assert page.count("<pre>") == 1
    assert page.endswith("<p>after</p>\n")


def test_only_raw_text_is_left_alone():
    assert finish(Raw("**x**")) == "**x**"
    assert finish("**x**") == r"\*\*x\*\*"
    assert finish(3) == "3"
    assert escape(string.ascii_letters + " 0.5, (a/b)") == string.ascii_letters + " 0.5, (a/b)"
