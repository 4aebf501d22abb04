"""tools/sanitize.py: what counts as a finding, and what is watched."""

import pytest

from scripts import load_script


@pytest.fixture(scope="module")
def sanitize():
    return load_script("tools/sanitize.py")


def test_reports_of_sanitizers_are_findings_and_other_output_is_not(sanitize, tmp_path):
    (tmp_path / "reports").mkdir()
    assert sanitize.reports(tmp_path) == []
    for number, text in enumerate(
        ("==7==ERROR: AddressSanitizer: heap-buffer-overflow", "a.cpp:3:5: runtime error: signed integer overflow")
    ):
        (tmp_path / "reports" / f"avx2.{number}").write_text(text)
        (tmp_path / "reports" / f"default.{number}").write_text(text)
    (tmp_path / "reports" / "avx2.9").write_text("==9==WARNING: AddressSanitizer failed to allocate 0x1 bytes")
    assert len(sanitize.reports(tmp_path)) == 2


def test_what_is_not_noticed_on_purpose_ends_the_run(sanitize, tmp_path, monkeypatch):
    """Ops of another build, or a probe that no sanitizer watches."""

    class Done:
        returncode, stderr = 0, ""
        stdout = "/elsewhere/_C.so avx2"

    monkeypatch.setattr(sanitize.subprocess, "run", lambda *arguments, **options: Done)
    with pytest.raises(SystemExit, match=r"the watched ops were not loaded, but '/elsewhere/_C\.so'"):
        sanitize.prove(tmp_path / "python", tmp_path, "g++", {})
    Done.stdout = str(tmp_path / "_C.so") + " avx2"
    (tmp_path / "_C.so").write_bytes(b"__asan_init")
    with pytest.raises(SystemExit, match="a heap-buffer-overflow on purpose was not noticed"):
        sanitize.prove(tmp_path / "python", tmp_path, "g++", {})


def test_a_compiler_without_sanitizers_is_named(sanitize, monkeypatch):
    class Done:
        stdout = "libasan.so\n"

    monkeypatch.setattr(sanitize.subprocess, "run", lambda *arguments, **options: Done)
    with pytest.raises(SystemExit, match=r"clang has no libasan\.so"):
        sanitize.runtime("clang", "libasan.so")
