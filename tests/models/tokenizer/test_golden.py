"""The golden cases: models with published weights give what an independent implementation of the model gave."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from losatok_ext.errors import CheckpointError, ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.nn.losses import kl_divergence, logvar_energy
from small_models import losses_of

CASES = [("golden_a", 0), ("golden_a", 1), ("golden_c50", 0)]
FEATURES = {
    "semantic": "semantic_emb",
    "acoustic": "acoustic_emb",
    "unified": "unified_emb",
    "semantic_low": "semantic_emb_low",
    "acoustic_low": "acoustic_emb_low",
    "unified_low": "unified_emb_low",
    "mu": "mu",
    "z": "mu",
    "logvar": "logvar",
}


def meta_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"])


@pytest.fixture(scope="module")
def golden(data):
    """Name to (model, meta)."""
    models = {}
    for name in ("golden_a", "golden_c50"):
        path = data / "golden" / f"{name}.state.safetensors"
        meta = meta_of(path)
        model = LoSATok.from_reference_checkpoint(path, meta["config"], meta["hidden_dim"], meta["frame_rate"])
        models[name] = model, meta
    return models


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, golden, data):
    name, index = request.param
    tensors = load_file(data / "golden" / f"{name}.cases.safetensors")
    prefix = f"case{index}."
    return golden[name][0], {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def assert_close(result, expected, **tolerance):
    torch.testing.assert_close(result, expected, **({"rtol": 1e-4, "atol": 2e-5} | tolerance))


@pytest.mark.parametrize("ours", FEATURES)
def test_features_and_latents(case, ours):
    model, expected = case
    latents = model.encode(expected["audio"], features=True)
    assert_close(getattr(latents, ours), expected[FEATURES[ours]])


def test_latents_do_not_depend_on_asking_for_features(case):
    model, expected = case
    assert_close(model.encode(expected["audio"]).mu, expected["mu"])


def test_decoded_audio(case):
    model, expected = case
    # Its root mean square is near 0.01: the golden tolerance alone would let through errors of 0.2 %.
    assert_close(model.decode(expected["mu"]), expected["decoded"], atol=1e-6)


def test_restored_teacher_features(case):
    model, expected = case
    features, lengths = model.teacher(expected["audio"])
    assert lengths.tolist() == [expected["sembo_recon"].shape[1]]
    assert_close(model.bottleneck.up(model.bottleneck(features)).detach(), expected["sembo_recon"])


def test_losses(case, golden):
    model, expected = case
    losses = losses_of(model, expected["audio"], sembo=True, sample=False)
    names = {
        "semantic_high": "loss_high",
        "semantic_low": "loss_low",
        "sembo_reconstruction": "sembo_mse_loss",
        "sembo_relation": "sembo_relation_loss",
        "kl": "kl_unclamped",
    }
    for ours, theirs in names.items():
        assert_close(losses[ours].detach().reshape(1), expected[theirs], atol=0.0)
    total = losses["sembo_reconstruction"] + losses["sembo_relation"]
    assert_close(total.detach().reshape(1), expected["sembo_total_loss"], atol=0.0)


def test_losses_of_the_latent(case):
    _, expected = case
    clamped = kl_divergence(expected["mu"], expected["logvar"], clamp=0.05)
    assert_close(clamped.reshape(1), expected["loss_kl"], atol=0.0)
    assert clamped > expected["kl_unclamped"]
    assert_close(logvar_energy(expected["logvar"]).reshape(1), expected["loss_logvar_loss"], atol=0.0)


def test_kl_clamp_of_the_configuration(data):
    path = data / "golden" / "golden_a.state.safetensors"
    meta = meta_of(path)
    published = LoSATokConfig.from_published(meta["config"], meta["hidden_dim"], meta["frame_rate"])
    config = LoSATokConfig.from_dict({**published.to_dict(), "kl_clamp": meta["kl_clamp"]})
    model = LoSATok.from_reference_checkpoint(path, config)
    expected = load_file(data / "golden" / "golden_a.cases.safetensors")
    kl = losses_of(model, expected["case0.audio"], sample=False)["kl"].detach()
    assert_close(kl.reshape(1), expected["case0.loss_kl"], atol=0.0)


@pytest.mark.parametrize("name", ["golden_a", "golden_c50"])
def test_round_trip_to_the_published_layout_loses_nothing(golden, data, name):
    model, _ = golden[name]
    expected = load_file(data / "golden" / f"{name}.state.safetensors")
    written = model.to_reference_state_dict()
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        # Filter banks are computed, with torch's float32 power function. The stored ones come from a processor with
        # AVX2; without it torch takes another function, whose last bits differ (by 1.4e-5 of a filter's peak of 1).
        if key.endswith("mel_scale.fb") and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
            torch.testing.assert_close(written[key], tensor, rtol=0, atol=2e-5)
        else:
            assert torch.equal(written[key], tensor), key


@pytest.mark.parametrize("kind", ["pth", "wrapped", "state dict"])
def test_other_containers(golden, data, tmp_path, kind):
    model, meta = golden["golden_a"]
    state = load_file(data / "golden" / "golden_a.state.safetensors")
    source = state
    if kind != "state dict":
        source = tmp_path / "model.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if kind == "wrapped" else state, source)
    loaded = LoSATok.from_reference_checkpoint(source, meta["config"], meta["hidden_dim"])
    assert loaded.fingerprint() == model.fingerprint()


SEMANTIC = "semantic_encoder.encoder."


@pytest.mark.parametrize("prefix", ["audio_encoder.", "", "encoder."])
@pytest.mark.parametrize("container", ["dict", "file", "folder", "sharded"])
def test_semantic_encoder_kept_apart(golden, data, tmp_path, prefix, container):
    model, meta = golden["golden_a"]
    state = load_file(data / "golden" / "golden_a.state.safetensors")
    rest = {name: t for name, t in state.items() if not name.startswith(SEMANTIC)}
    # MiDashengLM's own names: init_bn without the step that the published model wraps around it, and no step counter.
    apart = {
        prefix + name.removeprefix(SEMANTIC).replace("init_bn.1.", "init_bn."): t
        for name, t in state.items()
        if name.startswith(SEMANTIC) and not name.endswith("num_batches_tracked")
    }
    source = apart
    if container == "file":
        source = tmp_path / "encoder.safetensors"
        save_file(apart, source)
    elif container in ("folder", "sharded"):
        source = tmp_path / "shards"
        source.mkdir()
        half = dict(list(apart.items())[: len(apart) // 2])
        other = {name: t for name, t in apart.items() if name not in half}
        save_file(half, source / "model-1.safetensors")
        foreign = {"decoder.weight": torch.zeros(3)} if prefix == "audio_encoder." else {}
        save_file({**other, **foreign}, source / "model-2.safetensors")
        if container == "sharded":
            where = {**dict.fromkeys(half, "model-1.safetensors"), **dict.fromkeys(other, "model-2.safetensors")}
            if foreign:
                (source / "model-3.safetensors").write_bytes(b"of the language model, never to be read")
                where["decoder.lm_head"] = "model-3.safetensors"
            (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    loaded = LoSATok.from_reference_checkpoint(rest, meta["config"], meta["hidden_dim"], semantic_encoder=source)
    assert loaded.fingerprint() == model.fingerprint()


def test_what_does_not_fit_is_named(data, tmp_path):
    path = data / "golden" / "golden_a.state.safetensors"
    meta = meta_of(path)
    state = load_file(path)

    def load(source, config=meta["config"], hidden_dim=meta["hidden_dim"], **rest):
        return LoSATok.from_reference_checkpoint(source, config, hidden_dim, **rest)

    with pytest.raises(CheckpointError, match=r"lacks the tensor fc_a\.bias"):
        load({name: t for name, t in state.items() if name != "fc_a.bias"})
    with pytest.raises(CheckpointError, match=r"bottleneck\.down\.fc1\.weight has shape \[24, 48\].*\[512, 48\]"):
        load(path, hidden_dim=512)
    position = "semantic_encoder.encoder.time_pos_embed"
    with pytest.raises(CheckpointError, match=r"time_position has shape"):
        load({**state, position: state[position][:, :, :0]})
    with pytest.raises(CheckpointError, match=r"discriminator\.weight"):
        load({**state, "discriminator.weight": torch.zeros(2)})
    slaney = dict(state)
    slaney["semantic_encoder.encoder.front_end.0.mel_scale.fb"] = state[
        "semantic_encoder.encoder.front_end.0.mel_scale.fb"
    ].roll(1, 0)
    with pytest.raises(CheckpointError, match="front end"):
        load(slaney)
    with pytest.raises(ConfigError, match="frame_rate"):
        load(path, frame_rate=50)
    with pytest.raises(ConfigError, match="n_layers"):
        load(path, config={**meta["config"], "n_layers": 3})
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nothing.pth")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        load(tmp_path / "cut.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        load(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a state dict"):
        load(tmp_path / "list.pth")


def test_a_pickle_that_would_run_code_is_refused(data, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"fc_a.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError,
        match=r"evil\.pth .* \(it holds more than tensors and plain values, which could run code\); copy",
    ) as refused:
        LoSATok.from_reference_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(refused.value)
