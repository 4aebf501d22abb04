"""Markdown: one table writer, and text that stays text."""

import pytest

from losatok_ext.evaluation.reporting.markdown import Markdown, bold, document, escape, table


def test_a_table():
    text = table(["", "a"], [["x|y", "1 ± 2"], [bold("best"), "–"]])
    assert text == "|  | a |\n|---|---:|\n| x\\|y | 1 ± 2 |\n| **best** | – |\n"
    with pytest.raises(ValueError, match="a row should have 2 cells, got 1"):
        table(["", "a"], [["x"]])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("semantic_low+pca:64, 95 %", "semantic_low+pca:64, 95 %"),
        ("_a_ *b* ~c~", "\\_a\\_ \\*b\\* \\~c\\~"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[a](b) `c`", "\\[a\\](b) \\`c\\`"),
        ("a\\b", "a\\\\b"),
        ("\x1b[31m\n", "\\\\x1b\\[31m\\\\n"),
        (Markdown("**as it is**"), "**as it is**"),
    ],
)
def test_text_is_escaped(text, escaped):
    assert escape(text) == escaped


def test_a_document_has_tables_notes_and_what_was_left_out(report):
    text = document(report)
    assert text.startswith("# A &lt;title&gt;\n\nmodel: &lt;&amp;&gt;\n")
    assert "**A \\| table**\n\n|  | a |\n|---|---:|\n| x\\|y | 1 ± 2 |\n" in text
    assert "Folded" not in text
    assert text.endswith("- a note &amp; more\n\n## Left out: 1\n\n- bad.wav is &lt;empty&gt;\n")


def test_a_file_name_adds_no_markup(hostile):
    text = document(hostile)
    assert not set(text) & set("<>\x1b\x0c")
    assert "\n# head" not in text
    assert "](" not in text.replace("\\](", "")
    text.encode("utf-8")
