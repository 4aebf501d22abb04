"""A small model in a folder, and the real command line, called in this process."""

from dataclasses import dataclass

import pytest
import torch

from losatok_ext.cli import main
from losatok_ext.models import LoSATok
from small_models import make_generator, save_model, small_config


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def sentences(self):
        """The lines on stderr."""
        return self.err.splitlines()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other model")
    LoSATok(small_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generator_folder(model_folder, tmp_path_factory):
    return make_generator(tmp_path_factory.mktemp("generator"), LoSATok.from_pretrained(model_folder).fingerprint())


@pytest.fixture
def losatok(capfd, monkeypatch):
    """Run ``losatok ARGUMENTS...`` and return its exit code, stdout and stderr."""
    monkeypatch.delenv("LOSATOK_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err or "--debug" in arguments
        return Result(code, out, err)

    return run


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """These models are too small to share out; waiting threads would only take time from the other test worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for processes
    yield
    torch.set_num_threads(threads)
