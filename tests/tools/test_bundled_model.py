"""tools/bundled_model.py: what it exports can be loaded."""

import torch
from safetensors.torch import load_file

from losatok_ext.models import LoSATok
from scripts import load_script
from small_models import lively, small_config


def test_weights_are_stored_in_half_precision_and_statistics_as_they_are(tmp_path):
    model = lively(LoSATok(small_config()))
    exported = load_script("tools/bundled_model.py").half(model, tmp_path)
    stored, parameters = load_file(tmp_path / "model.safetensors"), dict(model.named_parameters())
    for name, value in model.state_dict().items():
        expected = value.half() if name in parameters else value
        assert stored[name].dtype == expected.dtype
        assert torch.equal(stored[name], expected)
        assert torch.equal(exported.state_dict()[name], expected.float() if name in parameters else value)
