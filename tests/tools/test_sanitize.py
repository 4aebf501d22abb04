"""tools/sanitize.py: what counts as a finding, and what is watched."""

import pytest

from scripts import load_script


@pytest.fixture(scope="module")
def sanitize():
    return load_script("tools/sanitize.py")


def test_findings_are_in_files_and_in_what_tests_write_and_other_output_is_none(sanitize, tmp_path):
    (tmp_path / "reports").mkdir()
    assert sanitize.findings(tmp_path, "12 passed", "") == []
    (tmp_path / "reports" / "avx2.1").write_text("==7==ERROR: AddressSanitizer: heap-buffer-overflow")
    (tmp_path / "reports" / "avx2.2").write_text("==7==ERROR: AddressSanitizer: heap-buffer-overflow")
    (tmp_path / "reports" / "avx2.9").write_text("==9==WARNING: AddressSanitizer failed to allocate 0x1 bytes")
    found = sanitize.findings(tmp_path, "...\na.cpp:3:5: runtime error: signed integer overflow\n", "")
    assert len(found) == 2
    assert "signed integer overflow" in found[1]
    sanitize.forget(tmp_path)
    assert sanitize.findings(tmp_path) == []


def test_what_is_not_noticed_on_purpose_ends_the_run(sanitize, tmp_path, monkeypatch):
    """Ops of another build or of another instruction set, or a probe that no sanitizer watches."""

    class Done:
        returncode, stderr = 0, ""
        stdout = "/elsewhere/_C.so avx2"

    def prove():
        sanitize.prove(tmp_path / "python", tmp_path, "g++", "avx2", {})

    monkeypatch.setattr(sanitize.subprocess, "run", lambda *arguments, **options: Done)
    with pytest.raises(SystemExit, match=r"the watched ops were not loaded, but '/elsewhere/_C\.so'"):
        prove()
    (tmp_path / "_C.so").write_bytes(b"__asan_init")
    Done.stdout = str(tmp_path / "_C.so") + " default"
    with pytest.raises(SystemExit, match="asked for the kernels of avx2, got those of default"):
        prove()
    Done.stdout = str(tmp_path / "_C.so") + " avx2"
    with pytest.raises(SystemExit, match="a heap-buffer-overflow on purpose was not noticed"):
        prove()


def test_where_no_instruction_set_could_run_nothing_is_clean(sanitize, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "build", lambda *arguments: tmp_path / "python")
    monkeypatch.setattr(sanitize, "features_of_the_processor", lambda: {"avx2"})
    monkeypatch.setattr("sys.argv", ["sanitize.py", "-w", str(tmp_path), "--levels", "avx512"])
    assert sanitize.main() == 1
    assert "avx512: left out, this processor has no fma" in capsys.readouterr().out


def test_a_compiler_without_sanitizers_is_named(sanitize, monkeypatch):
    class Done:
        stdout = "libasan.so\n"

    monkeypatch.setattr(sanitize.subprocess, "run", lambda *arguments, **options: Done)
    with pytest.raises(SystemExit, match=r"clang has no libasan\.so"):
        sanitize.runtime("clang", "libasan.so")
