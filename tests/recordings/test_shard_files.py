"""The tar files of shards: hostile and damaged headers cost no more than the clips that they belong to."""

import tarfile

import pytest

from losatok_ext.audio.files import flac_bytes
from losatok_ext.recordings.shard_files import scan_shard
from losatok_ext.training.data.corpus import open_corpus
from small_models import tone


def member(name, content=b"", **header):
    """A file in a tar file; ``header``: attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in header.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def pax(name, content, **records):
    """The same with an extended header."""
    body = b""
    for key, value in records.items():
        text = value if isinstance(value, bytes) else str(value).encode()
        record = b" %s=%s\n" % (key.replace("__", ".").encode(), text)
        length = next(n for n in range(len(record), len(record) + 9) if n == len(record) + len(str(n)))
        body += str(length).encode() + record
    return member("PaxHeader", body, type=tarfile.XHDTYPE) + member(name, content)


HOSTILE = {
    "sparse map that is none": lambda audio: pax("bad.flac", audio, GNU__sparse__map="x,y"),
    "sparse size that is none": lambda audio: pax("bad.flac", audio, GNU__sparse__size="many"),
    "sparse file without its map": lambda audio: pax("bad.flac", audio, GNU__sparse__major=1, GNU__sparse__minor=0),
    "sparse file": lambda audio: pax(
        "bad.flac",
        b"1\n0\n512\n".ljust(512, b"\0") + audio[:512],
        GNU__sparse__major=1,
        GNU__sparse__minor=0,
        GNU__sparse__realsize=512,
    ),
    "negative size": lambda audio: member("bad.flac", audio, size=-512),
    "negative size, extended": lambda audio: pax("bad.flac", audio, size=-5),
    "very negative size, extended": lambda audio: pax("bad.flac", audio, size=-(10**30)),
    "size that goes back": lambda audio: pax("bad.flac", audio, size=-2048),
    "long name": lambda audio: member("x", b"a" * 600, type=tarfile.GNUTYPE_LONGNAME, size=1 << 40),
    "extended header of no encoding": lambda audio: pax("bad.flac", audio, hdrcharset=b"\xff"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_cost_only_their_own_clip(tmp_path, capfd, kind, first):
    audio = flac_bytes(tone(8000), 16000)
    bad, good = HOSTILE[kind](audio), [member(f"{name}.flac", audio) for name in "ab"]
    parts = [bad, *good] if first else [good[0], bad, good[1]]
    (tmp_path / "shard.tar").write_bytes(b"".join(parts) + bytes(1024))
    corpus = open_corpus(tmp_path / "shard.tar", 16000, 640, 512)
    # Behind an extended header that is skipped the file has a header of its own, by which it may be read.
    assert [clip.name for clip in corpus.clips if clip.name != "shard.tar/bad"] == ["shard.tar/a", "shard.tar/b"]
    assert corpus.skipped
    assert capfd.readouterr().err == ""


def test_a_chain_of_extended_headers_ends_the_shard(tmp_path):
    audio = flac_bytes(tone(8000), 16000)
    first, chain = member("a.flac", audio), member("x", b"", type=tarfile.GNUTYPE_LONGNAME) * 1500
    (tmp_path / "shard.tar").write_bytes(first + chain + member("b.flac", audio) + bytes(1024))
    found = scan_shard(tmp_path / "shard.tar")
    assert [sample.key for sample in found.samples] == ["a"]
    assert found.left_out == [f"{tmp_path}/shard.tar is damaged at byte {len(first)}: what follows is left out"]


def test_a_shard_without_its_end_is_called_truncated(tmp_path):
    """It may have been cut between two clips."""
    audio = flac_bytes(tone(8000), 16000)
    content = member("a.flac", audio) + member("b.flac", audio)
    for end, said in ((b"", True), (bytes(512), False), (bytes(10240), False)):
        (tmp_path / "shard.tar").write_bytes(content + end)
        found = scan_shard(tmp_path / "shard.tar")
        assert [sample.key for sample in found.samples] == ["a", "b"]
        assert any("is truncated: the blocks that mark its end are missing" in line for line in found.left_out) == said
