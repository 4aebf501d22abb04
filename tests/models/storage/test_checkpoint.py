"""Model folders: what is saved comes back, and what does not fit is named."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.errors import CheckpointError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage import checkpoint
from small_models import lively, losses_of, put_weights, save_model, small_config, tone

FILE = "model.safetensors"


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(model, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = LoSATok.from_pretrained(folder)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    audio = tone(9000)
    assert torch.equal(loaded.encode(audio).z, model.encode(audio).z)
    assert torch.equal(loaded.reconstruct(audio), model.reconstruct(audio))
    assert loaded.fingerprint() == model.fingerprint()
    assert not any(p.requires_grad for p in loaded.semantic_encoder.parameters())
    assert all(p.requires_grad for p in loaded.decoder.parameters())
    losses_of(loaded.train(), audio)["mel"].backward()


def test_a_low_precision_model_comes_back_as_it_was(model, tmp_path):
    half = copy.deepcopy(model).bfloat16()
    half.save_pretrained(tmp_path)
    loaded = LoSATok.from_pretrained(tmp_path)
    assert loaded.fc_mu.weight.dtype == torch.bfloat16
    assert loaded.semantic_encoder.mel.window.dtype == torch.float32
    assert torch.equal(loaded.encode(tone(5000)).z, half.encode(tone(5000)).z)


def test_saving_again_replaces_and_leaves_nothing_behind(model, folder):
    other = lively(LoSATok(small_config()))
    with torch.no_grad():
        other.fc_mu.weight.add_(1)
    other.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert LoSATok.from_pretrained(folder).fingerprint() == other.fingerprint() != model.fingerprint()


def test_a_flipped_bit_is_noticed(folder):
    whole = (folder / FILE).read_bytes()
    for place in (len(whole) - 3, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 1
        (folder / FILE).write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: .*; copy it again, or remove"):
            LoSATok.from_pretrained(folder)
    (folder / FILE).write_bytes(whole)
    LoSATok.from_pretrained(folder)


def test_a_folder_without_a_checksum_is_read(model, folder):
    put_weights(folder, load_file(folder / FILE))
    assert LoSATok.from_pretrained(folder).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checked", [True, False], ids=["with a checksum", "of an old version"])
def test_killed_at_any_moment_there_is_the_old_model_or_the_new_one(model, tmp_path, monkeypatch, dtype, checked):
    """Saving changes the folder by renaming files, and nothing else: it is stopped before and after each of them."""
    folder, names = save_model(tmp_path / "model", seed=1), []
    new = copy.deepcopy(model).cast(dtype)
    old = LoSATok.from_pretrained(folder).fingerprint()
    stop, rename = 0, Path.replace

    class KilledError(BaseException):
        pass

    def counted(path, target):
        if len(names) == stop:
            raise KilledError
        names.append(Path(target).name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    seen = []
    while not seen or seen[-1] != "saved":
        if not checked:
            put_weights(folder, load_file(folder / FILE))
        try:
            new.save_pretrained(folder)
            seen.append("saved")
        except KilledError:
            found = LoSATok.from_pretrained(folder)
            assert found.config == model.config
            seen.append({old: "old", new.fingerprint(): "new"}[found.fingerprint()])
            monkeypatch.setattr(Path, "replace", rename)
            save_model(folder, seed=1)  # saving over what was left
            assert LoSATok.from_pretrained(folder).fingerprint() == old
            assert sorted(path.name for path in folder.iterdir()) == ["config.json", FILE]
            monkeypatch.setattr(Path, "replace", counted)
        names.clear()
        stop += 1
    assert seen == ["old", "old", "new", "saved"]
    assert LoSATok.from_pretrained(folder).fingerprint() == new.fingerprint()


def test_another_model_over_one_whose_last_step_is_missing(model, folder, monkeypatch):
    """The new weights have their name, their configuration has not: saving again must not lose it before its time."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").rename(folder / "config.next.json")
    assert LoSATok.from_pretrained(folder).fingerprint() == model.fingerprint()

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        lively(LoSATok(small_config(latent_dim=4))).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()) == values
    assert LoSATok.from_pretrained(folder).fingerprint() == model.fingerprint()


def test_the_fingerprint_follows_the_weights():
    torch.manual_seed(0)
    model = LoSATok(small_config())
    first = model.fingerprint()
    assert len(first) == 16
    assert model.fingerprint() == first
    with torch.no_grad():
        model.decoder.head.out.bias[3] += 0.5
    second = model.fingerprint()
    assert second != first
    optimizer = torch.optim.SGD(model.train_only("tokenizer"), lr=0.1)
    losses_of(model, tone(3200))["kl"].backward()
    optimizer.step()
    assert model.fingerprint() not in (first, second)
    # How it runs is not what it is.
    other = LoSATok(small_config(chunk_batch=3, kl_clamp=0.1))
    other.load_state_dict(model.state_dict())
    assert other.fingerprint() == model.fingerprint()
    changed = LoSATok(small_config(top_db=80.0))
    changed.load_state_dict(model.state_dict())
    assert changed.fingerprint() != model.fingerprint()


def test_loading_makes_no_random_numbers(folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    LoSATok.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def break_json(folder):
    (folder / "config.json").write_text('{"model_type": ')


def break_config(folder):
    values = json.loads((folder / "config.json").read_text())
    values["config"]["n_layer"] = 3
    (folder / "config.json").write_text(json.dumps(values))


def break_shape(folder):
    values = json.loads((folder / "config.json").read_text())
    values["config"]["latent_dim"] = 12
    (folder / "config.json").write_text(json.dumps(values))


def foreign_config(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def drop_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["fc_mu.bias"]
    put_weights(folder, state)


def add_tensor(folder):
    state = load_file(folder / "model.safetensors")
    put_weights(folder, {**state, "extra.weight": torch.zeros(1)})


def spoil(value, dtype=torch.float32):
    def damage(folder):
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(folder / FILE).items()}
        state["decoder.backbone.blocks.1.fc1.weight"][3, 2] = value
        put_weights(folder, state)

    return damage


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        *(
            (spoil(float(value), dtype), r"the tensor decoder\.backbone\.blocks\.1\.fc1\.weight holds NaN or infinity")
            for value in ("nan", "inf", "-inf")
            for dtype in (torch.float32, torch.bfloat16)
        ),
        (lambda folder: (folder / "config.json").unlink(), r"is no model folder: it has no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors does not exist"),
        (break_json, r"config\.json is not readable JSON"),
        (break_config, r"config\.json: n_layer is not a key; the keys here are sample_rate"),
        (foreign_config, "does not describe a model of losatok_ext"),
        (break_shape, r"bottleneck\.down\.fc2\.weight has shape \[8, 16\].*\[12, 16\]"),
        (truncate, "not a whole safetensors file"),
        (empty, "not a whole safetensors file"),
        (drop_tensor, r"lacks the tensor fc_mu\.bias"),
        (add_tensor, r"1 tensors that this model does not, extra\.weight first"),
    ],
)
def test_what_does_not_fit_is_named(folder, damage, match):
    damage(folder)
    with pytest.raises(CheckpointError, match=match):
        LoSATok.from_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        LoSATok.from_pretrained(tmp_path / "nowhere")


def test_the_published_model_has_its_size():
    with torch.device("meta"):
        model = LoSATok(LoSATokConfig.preset("base"))
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    assert 800 < sum(sizes.values()) < 810
    assert 628 < sizes["semantic_encoder"] < 632
    assert 168 < sizes["decoder"] < 174
    assert sizes["bottleneck"] == pytest.approx(1.44, abs=0.01)
