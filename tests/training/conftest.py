"""What training tests share."""

import pytest

from losatok_ext.training import train_sembo
from training_runs import SPEECH, small_run


@pytest.fixture(scope="session")
def sembo(tmp_path_factory):
    """The folder of a run of one step, which ``tokenizer_config`` begins from. Nothing is to be written there."""
    output = tmp_path_factory.mktemp("sembo")
    train_sembo(SPEECH, output, small_run(steps=1))
    return output
