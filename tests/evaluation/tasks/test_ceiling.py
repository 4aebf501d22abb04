"""The ceiling is the fastest of the libraries at hand, and says which one."""

import pytest
import torch

from losatok_ext.evaluation.tasks import ceiling


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ceiling, "_SIZES", {"cpu": (32,)})
    ceiling.matrix_ceiling.cache_clear()
    yield
    ceiling.matrix_ceiling.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_library_computes_a_product_of_that_size(dtype):
    found = ceiling.products(dtype, "cpu", 32)
    with torch.no_grad():
        assert all(product().shape == (32, 32) for product in found.values())
    assert any(name.startswith("torch.mm") for name in found)
    if ceiling._onednn(torch.float32):
        assert any(name.startswith("oneDNN") for name in found)
    if dtype == torch.float16:
        assert all(name.endswith(" in float32") for name in found)


@pytest.mark.parametrize("fastest", ["torch.mm", "oneDNN", "oneDNN in float32"])
def test_the_ceiling_is_the_fastest_library_and_names_it(monkeypatch, fastest):
    names = ("torch.mm", "oneDNN", "oneDNN in float32")
    monkeypatch.setattr(ceiling, "products", lambda dtype, device, size: {name: (lambda n=name: n) for name in names})
    monkeypatch.setattr(ceiling, "seconds", lambda product, device: 0.5 if product() == fastest else 1.0)
    assert ceiling.matrix_ceiling(torch.bfloat16, budget=0.0) == ceiling.Ceiling(2 * 32**3 / 0.5, fastest)


def test_a_library_that_is_far_slower_is_tried_on_a_small_product_alone(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        ceiling,
        "products",
        lambda dtype, device, size: {"slow": lambda: sizes.append(size) or 9.0, "fast": lambda: 1.0},
    )
    monkeypatch.setattr(ceiling, "seconds", lambda product, device: product())
    assert ceiling.matrix_ceiling(torch.bfloat16, budget=0.0).library == "fast"
    assert set(sizes) == {ceiling._TRIAL_SIZE}
