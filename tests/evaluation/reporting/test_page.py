"""The page: complete, well formed, without a link to anywhere; text of files never becomes HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import soundfile
import torch

from losatok_ext.evaluation.reporting.page import page
from small_models import tone

VOID = {"meta", "img", "br"}


class Strict(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Strict()
    parser.feed(text)
    assert not parser.open
    assert all(source.startswith("data:") for source in parser.sources)
    return parser


def test_the_page_is_whole_and_asks_nobody(report):
    text = page(report)
    assert len(parsed(text).sources) == 4
    assert not re.search(r"https?://|url\(|@import|fetch\(", text)
    for given in ("A <title>", "<clip>", "bad.wav is <empty>", "A <chart>"):
        assert given not in text
        assert given.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "prefers-color-scheme: dark" in text
    assert "<td>1 <i>± 2</i></td>" in text


def test_a_file_name_adds_no_html(report, hostile):
    text = page(hostile)
    parser = parsed(text)
    assert parser.tags.count("img") == 1  # the spectrogram
    assert not set(text) & set("\x1b\x00")
    text.encode("utf-8")


def test_a_folded_table_is_on_the_page(report):
    assert "<details><summary>Folded</summary>" in page(report)


def test_players_hold_the_audio_and_pictures_the_spectrogram(report):
    sources = re.findall(r'src="data:(audio/flac|image/png);base64,([^"]+)"', page(report))
    assert [kind for kind, _ in sources] == ["image/png", "audio/flac"] * 2
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(sources[1][1])), dtype="float32")
    assert rate == 16_000
    torch.testing.assert_close(torch.from_numpy(audio), tone(8_000, 0), rtol=0, atol=2**-15)
    picture = base64.b64decode(sources[0][1])
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (51, 80)
