"""Teachers by name: our folders, published weights, encoders of transformers, the hub; what goes with SemBo."""

import json

import pytest
import torch
from safetensors.torch import save_file

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.training import TrainConfig, train_sembo
from small_models import lively, small_config, tone

transformers = pytest.importorskip("transformers", reason="needs transformers (losatok-ext[text])")
CONVOLUTION = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (20, 16), "num_feat_extract_layers": 2}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def wave_model(kind):
    config = getattr(transformers, f"{kind}Config")(
        **SMALL, **CONVOLUTION, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2
    )
    return getattr(transformers, f"{kind}Model")(config), transformers.Wav2Vec2FeatureExtractor()


def whisper():
    config = transformers.WhisperConfig(
        d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor()


MAKERS = {
    "wavlm": lambda: wave_model("WavLM"),
    "hubert": lambda: wave_model("Hubert"),
    "wav2vec2": lambda: wave_model("Wav2Vec2"),
    "whisper": whisper,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of encoder, as transformers saves it."""
    made = {}
    for name, maker in MAKERS.items():
        torch.manual_seed(0)
        model, extractor = maker()
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        extractor.save_pretrained(made[name])
    return made


def clips():
    lengths = torch.tensor([9600, 4000, 20000])
    audio = torch.full((3, 20000), torch.nan)
    for row, n in enumerate(lengths.tolist()):
        audio[row, :n] = tone(n, seed=row)
    return audio, lengths


@pytest.mark.parametrize("kind", MAKERS)
def test_encoders_of_transformers_give_features_at_our_rate(folders, kind):
    """T is ours, the width theirs, zeros past a clip, and each clip is as it is alone."""
    teacher = open_teacher(f"hf:{folders[kind]}")
    audio, lengths = clips()
    features, tokens = teacher(audio, lengths)
    assert tokens.tolist() == [(n // 160 + 1) // 4 for n in lengths.tolist()]
    assert features.shape == (3, 31, 24)
    assert teacher.dim == 24
    for row, (n, count) in enumerate(zip(lengths.tolist(), tokens.tolist(), strict=True)):
        alone, _ = teacher(audio[row : row + 1, :n], lengths[row : row + 1])
        assert torch.equal(features[row, :count], alone[0])
        assert (features[row, count:] == 0).all()
    assert not any(p.requires_grad for p in teacher.encoder.parameters())


def test_frames_are_read_at_the_centres_of_tokens(folders):
    """WavLM's frame i is centred at sample 320 i + 200 by its convolutions; a token's centre is 640 t + 320."""
    from losatok_ext.models.tokenizer.huggingface_encoder import _convolution

    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    assert _convolution(kernels, strides) == (320, 200.0)
    teacher = open_teacher(f"hf:{folders['wavlm']}")
    model, extractor = transformers.AutoModel.from_pretrained(folders["wavlm"]), transformers.Wav2Vec2FeatureExtractor()
    audio = tone(640 * 10)
    frames = model.eval()(extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_values)
    frames = frames.last_hidden_state[0].detach()
    features, _ = teacher(audio[None], torch.tensor([len(audio)]))
    stride, offset = _convolution(CONVOLUTION["conv_kernel"], CONVOLUTION["conv_stride"])
    for token in range(10):
        place = (640 * token + 320 - offset) / stride
        low = int(place)
        expected = frames[low] + (place - low) * (frames[low + 1] - frames[low])
        torch.testing.assert_close(features[0, token], expected, rtol=1e-4, atol=1e-5)


def test_layers_are_chosen_by_number(folders):
    audio, lengths = clips()
    last, first, inputs = (
        open_teacher(f"hf:{folders['hubert']}{part}")(audio, lengths)[0] for part in ("", "#1", "#0")
    )
    whole = open_teacher(f"hf:{folders['hubert']}#-1")(audio, lengths)[0]
    assert torch.equal(last, whole)
    assert not torch.equal(first, last)
    assert not torch.equal(first, inputs)
    with pytest.raises(UserError, match=r"layer should lie within -3\.\.2"):
        open_teacher(f"hf:{folders['hubert']}#3")
    with pytest.raises(UserError, match="after # comes the number of a layer, got 'two'"):
        open_teacher(f"hf:{folders['hubert']}#two")


def test_long_clips_go_in_pieces_of_thirty_seconds(folders):
    teacher = open_teacher(f"hf:{folders['wavlm']}")
    audio = tone(16000 * 31)
    features, tokens = teacher(audio[None], torch.tensor([len(audio)]))
    assert int(tokens[0]) == 775
    head, _ = teacher(audio[None, : 16000 * 30], torch.tensor([16000 * 30]))
    tail, _ = teacher(audio[None, 16000 * 30 :], torch.tensor([16000]))
    assert torch.equal(features[0], torch.cat([head[0], tail[0]]))


@pytest.mark.parametrize("kind", ["wavlm", "whisper"])
def test_sembo_learns_from_them_and_the_model_needs_nothing_else(folders, tmp_path, kind, monkeypatch):
    """The folder that SemBo leaves holds the teacher: it loads without the teacher's own folder, and encodes."""
    config = TrainConfig.from_dict(
        {"preset": "tiny", "steps": 2, "batch_size": 2, "device": "cpu", "teacher": f"hf:{folders[kind]}",
         "model": {"latent_dim": 8, "bottleneck_dim": 16, "decoder_dim": 16, "decoder_depth": 1, "decoder_hidden": 16},
         "data": {"crop_seconds": 0.4}}
    )  # fmt: skip
    result = train_sembo(sample_folder() / "speech", tmp_path / "run", config)
    folders[kind].rename(tmp_path / "gone")
    try:
        model = LoSATok.from_pretrained(result.model)
    finally:
        (tmp_path / "gone").rename(folders[kind])
    audio, lengths = clips()
    latents = model.encode(audio, lengths=lengths, features=True)
    assert latents.z.shape == (3, 31, 8)
    expected, _ = open_teacher(f"hf:{folders[kind]}")(audio, lengths)
    torch.testing.assert_close(latents.semantic[1, :6], expected[1, :6], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "copy")
    assert LoSATok.from_pretrained(tmp_path / "copy").fingerprint() == model.fingerprint()
    assert open_teacher(str(result.model)).fingerprint() == open_teacher(f"hf:{folders[kind]}").fingerprint()


@pytest.fixture
def model():
    return lively(LoSATok(small_config()))


def test_our_own_folders_and_runs(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    audio, lengths = clips()
    expected, _ = model.teacher(audio, lengths)
    for name in (tmp_path / "run", tmp_path / "run" / "model"):
        teacher = open_teacher(str(name))
        assert torch.equal(teacher(audio, lengths)[0], expected)
        assert (teacher.dim, teacher.sample_rate, teacher.samples_per_token) == (32, 16000, 640)
    other = lively(LoSATok(small_config(decoder_dim=16, latent_dim=4)))
    other.semantic_encoder.load_state_dict(model.semantic_encoder.state_dict())
    other.save_pretrained(tmp_path / "other")
    assert open_teacher(str(tmp_path / "other")).fingerprint() == teacher.fingerprint()


def test_published_weights_and_the_hub(model, tmp_path, monkeypatch):
    """A file, a folder of shards, and the hub, of which only the shards with the encoder are fetched."""
    audio, lengths = clips()
    expected, _ = model.teacher(audio, lengths)
    encoder = {
        name.replace("semantic_encoder.encoder.", "audio_encoder."): tensor.contiguous()
        for name, tensor in model.to_reference_state_dict().items()
        if name.startswith("semantic_encoder.encoder.")
    }
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file(encoder, hub / "one.safetensors")
    save_file({"decoder.weight": torch.zeros(3)}, hub / "two.safetensors")
    weight_map = dict.fromkeys(encoder, "one.safetensors") | {"decoder.weight": "two.safetensors"}
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in (hub / "one.safetensors", hub):
        assert torch.equal(open_teacher(str(name), model.config)(audio, lengths)[0], expected)

    fetched = []

    def download(repository, file):
        fetched.append((repository, file))
        return str(hub / file)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert torch.equal(open_teacher("hub:org/name", model.config)(audio, lengths)[0], expected)
    assert fetched == [("org/name", "model.safetensors.index.json"), ("org/name", "one.safetensors")]

    def refuse(repository, file):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=r"hub:org/name cannot be fetched \(no route to host\); download it else"):
        open_teacher("hub:org/name")


def test_what_is_no_teacher(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist; a teacher is a model folder"):
        open_teacher(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="transformers finds no audio encoder there"):
        open_teacher(f"hf:{tmp_path}")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds no semantic encoder"):
        open_teacher(str(tmp_path / "x.safetensors"))
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    wave_model("Hubert")[0].config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="works at 8000 Hz"):
        open_teacher(f"hf:{tmp_path}")
