"""What is kept of the GPU kernels: the page is of the figures, and a figure that changes is told by kernel."""

import json
import shutil

import pytest

import kernel_evidence as evidence
from host_shim import build, sanitizers


def test_the_page_is_of_the_figures():
    kept, text = json.loads(evidence.KEPT.read_text()), evidence.PAGE.read_text()
    assert evidence.page(kept, text) == text, "docs/kernels.md and docs/kernels.json disagree: make evidence"


def test_the_file_has_a_line_for_each_kernel():
    text = evidence.KEPT.read_text()
    kept = json.loads(text)
    assert evidence.as_json(kept) == text
    kernels = sum(len(rows) for compiler in ("nvcc", "triton") for rows in kept[compiler].values())
    assert text.count('{"registers": ') == kernels


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(SystemExit, match="one mark 'evidence: compilers' with its 'end', it has 0"):
        evidence.page(json.loads(evidence.KEPT.read_text()), "no marks")


def test_no_kept_cuda_kernel_spills_and_matrix_kernels_use_the_matrix_units():
    kept = json.loads(evidence.KEPT.read_text())["nvcc"]
    assert set(kept) == {f"sm_{architecture}" for architecture in evidence.ARCHITECTURES}
    for rows in kept.values():
        assert not [name for name, row in rows.items() if row["spilled"]]
        for kernel in ("dit_attention: forward_kernel<bfloat16, 64>", "dit_attention: forward_kernel<float16, 128>"):
            assert rows[kernel]["matrix"] > 0


def test_kernels_of_the_decoder_spill_nowhere():
    kept = json.loads(evidence.KEPT.read_text())["triton"]
    assert set(kept) == {evidence.ahead_name(*run) for run in evidence.AHEAD}
    ours = ("polar_", "overlap_kernel", "cut_kernel", "conv_")
    for rows in kept.values():
        own = {name: row for name, row in rows.items() if name.startswith(ours)}
        assert len(own) >= 7
        assert not [name for name, row in own.items() if row["spilled"]]


def test_differences_name_kernel_and_figure():
    row = {"registers": 32, "stack": 0, "spilled": 0, "matrix": 8}
    assert evidence.differences({"a": row}, {"a": row | {"shared": 64}}) == []
    assert evidence.differences({"a": row | {"registers": 40, "matrix": 0}}, {"a": row}) == [
        "a: registers 32 -> 40, matrix 8 -> 0"
    ]
    assert evidence.differences({"new": row}, {"old": row}) == ["new: not kept", "old: no longer there"]


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_names_are_those_one_writes():
    mangled = [
        "_ZN7losatok4cuda49_GLOBAL__N__6253dd89_16_time_relation_cu_ce36164215relation_kernelI6__halfLNS0_8RelationE2EEEv"
        "NS1_18RelationParametersIT_EE",
        "_ZN7losatok4cuda12_GLOBAL__N_116sum_terms_kernelEPKflPd",
    ]
    assert evidence.plain_names(mangled) == ["relation_kernel<float16, (Relation)2>", "sum_terms_kernel"]


def test_alike_variants_are_numbered():
    row = {"kernel": "k", "constants": "BLOCK=16", "warps": 4, "stages": 1, "registers": 1, "stack": 0, "spilled": 0}
    rows = evidence.triton_rows([row | {"matrix": 0, "shared": n} for n in range(3)])
    name = "k BLOCK=16 4 warps 1 stages"
    assert {key: value["shared"] for key, value in rows.items()} == {name: 0, f"{name} #2": 1, f"{name} #3": 2}


@pytest.mark.skipif(evidence.build.missing() is not None, reason=f"{evidence.build.missing()}")
def test_figures_of_another_compiler_are_not_compared(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(evidence, "compilers", lambda: {"nvcc": "1.0", "triton": "1.0"})
    with pytest.raises(evidence.OtherCompilerError, match=r"docs/kernels.json is of nvcc [\d.]+, this is 1.0"):
        evidence.kept_rows("nvcc", "sm_90")


def test_what_is_kept_is_of_the_sources_that_are_here():
    """A difference is no defect, but costs every run of the tests a compilation: make evidence."""
    kept = json.loads(evidence.KEPT.read_text())["digests"]
    for architecture in evidence.ARCHITECTURES:
        ours = {source.stem: build.cuda_digest(source, architecture) for source in build.KERNELS}
        assert kept["nvcc"][f"sm_{architecture}"] == ours, "make evidence"
    for run in evidence.AHEAD:
        assert kept["triton"][evidence.ahead_name(*run)] == {"all": evidence.triton_digest(*run)}, "make evidence"
    assert all(evidence.sanitizer_unchanged(name) for name in sanitizers.SCHEDULES), "make evidence"


def test_a_sanitizer_runs_again_after_a_change(monkeypatch, tmp_path):
    for name in sanitizers.SCHEDULES:
        kept = tmp_path / "kernels.json"
        kept.write_text(json.dumps({"sanitizers": {name: {"launches": 1, "digest": sanitizers.digest(name)}}}))
        monkeypatch.setattr(evidence, "KEPT", kept)
        assert evidence.sanitizer_unchanged(name)
        with monkeypatch.context() as patch:
            patch.setitem(sanitizers.SCHEDULES, name, ((0, 7),))
            assert not evidence.sanitizer_unchanged(name)
        with monkeypatch.context() as patch:
            patch.setattr(sanitizers, "SOURCES", sanitizers.SOURCES[1:])
            assert not evidence.sanitizer_unchanged(name)
    assert len({sanitizers.digest(name) for name in sanitizers.SCHEDULES}) == len(sanitizers.SCHEDULES)


def test_a_digest_changes_with_the_code_and_not_with_what_is_said_of_it(tmp_path, monkeypatch):
    digests = []
    for text in ('"""One."""\nx = 1\n', '"""Another.\n\nOne."""\n# a remark\nx = 1\n', "x = 2\n"):
        for folder in ("triton_kernels", "tests"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "triton_kernels" / "op.py").write_text(text)
        (tmp_path / "tests" / "triton_ahead.py").write_text("")
        monkeypatch.setattr(evidence, "ROOT", tmp_path)
        digests.append(evidence.triton_digest("sm90", "float32", ()))
    assert digests[0] == digests[1] != digests[2]
    source = tmp_path / "kernel.cu"
    source.write_text("int x;\n")
    first = build.cuda_digest(source, 80)
    assert first != build.cuda_digest(source, 90)
    source.write_text("int y;\n")
    assert first != build.cuda_digest(source, 80)


@pytest.mark.parametrize(("there", "digest", "expected"), [("1", "a", True), ("2", "a", False), ("1", "b", False)])
def test_what_is_kept_counts_for_the_same_sources_and_the_same_compiler(monkeypatch, tmp_path, there, digest, expected):
    kept = tmp_path / "kernels.json"
    kept.write_text(json.dumps({"compilers": {"nvcc": "1"}, "digests": {"nvcc": {"sm_80": {"op": "a"}}}}))
    monkeypatch.setattr(evidence, "KEPT", kept)
    monkeypatch.setattr(evidence, "compilers", lambda: {"nvcc": there})
    assert evidence.unchanged("nvcc", "sm_80", "op", digest) is expected
    assert not evidence.unchanged("nvcc", "sm_90", "op", digest)
