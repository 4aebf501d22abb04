"""Text from outside: shown as it is, except for what controls a terminal or hides other text."""

import pytest

from losatok_ext.text import printable


@pytest.mark.parametrize("text", ["plain.wav", "Ä 音声 🧑‍🎤 é", "a\\b <c> | d"])
def test_ordinary_text_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m\x7f\0", r"\x9b31m\x7f\x00"),
        ("gpj.\u202ewav", r"gpj.\u202ewav"),
        ("\udcff.wav", r"\udcff.wav"),
    ],
)
def test_control_characters_are_spelled_out(text, shown):
    assert printable(text) == shown
