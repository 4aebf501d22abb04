"""The plain-PyTorch build of the published model that benchmarks measure against computes what ours computes."""

import pytest
import torch

from losatok_ext.models import LoSATok
from published_model import PublishedLoSATok
from small_models import lively, small_config, tone


@pytest.mark.parametrize("seconds", [1.0, 10.5])
def test_it_is_the_same_model(seconds):
    model = lively(LoSATok(small_config()))
    published = PublishedLoSATok(model.config).eval()
    published.load_state_dict(model.to_reference_state_dict())
    audio = tone(int(16000 * seconds))[None]
    with torch.no_grad():
        mu = published.encode(audio)
        decoded = published.decode(mu)
    torch.testing.assert_close(model.encode(audio).mu, mu, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(mu), decoded, rtol=1e-4, atol=1e-4 * float(decoded.abs().max()))
