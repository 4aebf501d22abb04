"""What the build says before it compiles: an isolated build without torch, a CMake that is too old for CUDA."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import ROOT, load_script


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("scikit_build_core")
    return load_script("cmake/build_backend.py")


@pytest.fixture
def isolated(backend, monkeypatch):
    """The hooks as pip calls them in an isolated build: torch cannot be imported."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(backend.OVERRIDE, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    return backend


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
@pytest.mark.parametrize("installed", [torch.__version__, None])
def test_an_isolated_build_stops_and_says_what_to_type(isolated, monkeypatch, hook, installed):
    monkeypatch.setattr(isolated, "_torch_of_user", lambda: installed)
    with pytest.raises(SystemExit) as stopped:
        getattr(isolated, hook)()
    message = str(stopped.value)
    assert "pip install --no-build-isolation ." in message
    assert (f"for your torch {installed}" if installed else "after `pip install torch`") in message
    assert "\n" not in message


def test_an_isolated_build_takes_the_torch_that_was_chosen(isolated, monkeypatch):
    monkeypatch.setenv(isolated.OVERRIDE, "torch==2.13.0")
    wanted = isolated.get_requires_for_build_wheel()
    assert "torch==2.13.0" in wanted
    assert isolated.CMAKE in wanted  # without it the system's CMake is taken, which may be too old for CUDA


def test_a_source_distribution_needs_no_torch(isolated):
    assert not [name for name in isolated.get_requires_for_build_sdist() if name.startswith("torch")]


def test_a_build_that_sees_torch_goes_on(backend, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not [name for name in backend.get_requires_for_build_wheel() if name.startswith("torch")]


def test_the_torch_of_the_environment_is_found_by_its_files(backend, monkeypatch, tmp_path):
    folder = tmp_path / "torch-2.13.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda kind: str(tmp_path))
    assert backend._torch_of_user() == "2.13.0+cpu"
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda kind: str(tmp_path / "empty"))
    assert backend._torch_of_user() is None


def cmake():
    beside = Path(sys.executable).with_name("cmake")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("cmake")
    return found or pytest.skip("cmake is not installed")


@pytest.mark.parametrize("features", ["cuda_std_03;cuda_std_17", "cuda_std_17;cuda_std_20"])
def test_a_cmake_that_cannot_compile_cxx20_with_nvcc_is_named(tmp_path, features):
    script = tmp_path / "check.cmake"
    script.write_text(
        "cmake_policy(VERSION 3.22)\nset(CMAKE_CUDA_COMPILER_VERSION 13.0)\n"
        f'set(CMAKE_CUDA_COMPILE_FEATURES "{features}")\n'
        f'include("{ROOT / "cmake" / "require_cuda20.cmake"}")\n'
    )
    result = subprocess.run([cmake(), "-P", script], capture_output=True, text=True)
    words = " ".join(result.stderr.split())
    if "cuda_std_20" in features:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode != 0
        assert "pip install 'cmake>=3.25.2'" in words
        assert "LOSATOK_CUDA=0" in words
