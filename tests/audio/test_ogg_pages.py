"""Damaged and missing pages of Ogg files."""

import io

import numpy as np
import pytest
import soundfile

from losatok_ext.audio.ogg_pages import damaged_pages


@pytest.fixture(scope="module", params=["VORBIS", "OPUS"])
def pages(request):
    """The pages of a file of six seconds."""
    file = io.BytesIO()
    soundfile.write(
        file, 0.3 * np.random.default_rng(0).standard_normal(96_000), 16_000, format="OGG", subtype=request.param
    )
    parts = file.getvalue().split(b"OggS")
    assert parts[0] == b""
    assert len(parts) > 5
    return [b"OggS" + part for part in parts[1:]]


def damage(*parts):
    content = b"".join(parts)
    return damaged_pages(io.BytesIO(content), len(content))


def test_whole_files_chains_and_tags(pages):
    assert damage(*pages) is None
    assert damage(*pages, *pages) is None  # one after the other
    assert damage(*pages, b"TAG" + bytes(125)) is None
    assert damage(*pages, bytes(5000)) is None


def test_a_flipped_bit_is_noticed_wherever_it_is(pages):
    content = bytearray(b"".join(pages))
    for place in np.random.default_rng(0).integers(4, len(content), 50):
        content[place] ^= 16
        assert "are no valid Ogg pages" in damage(content)
        content[place] ^= 16
    assert damage(content) is None


def test_lost_pages_are_counted(pages):
    assert damage(*pages[:3], *pages[4:]) == "1 Ogg page is missing"
    assert damage(*pages[:2], *pages[4:]) == "2 Ogg pages are missing"
    assert damage(*pages[:-1]) == "its last Ogg page is missing"
    size = sum(map(len, pages))
    zeros = bytes(len(pages[3]))
    told = f"{len(zeros)} of its {size} bytes are no valid Ogg pages and 1 Ogg page is missing"
    assert damage(*pages[:3], zeros, *pages[4:]) == told


def test_every_cut_is_noticed(pages):
    content = b"".join(pages)
    for cut in (1, 20, 26, 30, len(pages[-1]), len(pages[-1]) + 1, len(content) - 10):
        assert damage(content[:-cut]) is not None


def test_what_only_looks_like_pages_takes_no_time(pages):
    assert "no valid Ogg pages" in damage(*pages[:3], b"OggS\0" * 400_000)
    header = b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255
    assert "no valid Ogg pages" in damage(*pages[:3], header * 40_000)
