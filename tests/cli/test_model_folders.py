"""Commands that take a model take its folder, the folder of its run and bundled names, and name a wrong type."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from losatok_ext.audio.files import write_audio
from losatok_ext.models import LoSATok
from losatok_ext.models.storage.folders import RUN_FILE
from small_models import put_weights, tone

TOKENIZER_COMMANDS = {
    "encode": "encode IN -o OUT -m MODEL",
    "decode": "decode LATENTS -o OUT -m MODEL",
    "reconstruct": "reconstruct IN -o OUT.wav -m MODEL",
    "convert": "convert MODEL -o OUT",
    "info": "info MODEL",
    "profile encode": "profile encode IN -m MODEL",
    "profile decode": "profile decode LATENTS -m MODEL",
    "fit-quantizer": "fit-quantizer -l LATENTS -o OUT -m MODEL --vq 4",
    "evaluate reconstruction": "evaluate reconstruction IN -o OUT -m MODEL --no-pesq --no-stoi",
    "evaluate probe": "evaluate probe MANIFEST --label height -o OUT -m MODEL",
    "evaluate precision": "evaluate precision IN -m MODEL",
    "evaluate storage": "evaluate storage IN -o OUT -m MODEL",
    "evaluate generation": "evaluate generation MANIFEST MANIFEST -o OUT -m MODEL",
    "analyze": "analyze MANIFEST -o OUT -m MODEL",
    "precompute latents": "precompute latents FOLDER -o OUT -m MODEL",
    "precompute features": "precompute features FOLDER -o OUT --teacher MODEL",
    "train sembo": "train sembo FOLDER -o OUT --batch-size 1 --init MODEL",
    "train sembo --teacher": "train sembo FOLDER -o OUT --batch-size 1 --teacher MODEL",
    "train tokenizer": "train tokenizer FOLDER -o OUT --batch-size 1 --init MODEL",
    "train generator": "train generator FOLDER -o OUT --batch-size 1 -m MODEL",
    "generate": "generate --seconds 1 -o OUT.wav -g GENERATOR -m MODEL",
    "edit": "edit IN --span 0:0.2 -o OUT.wav -g GENERATOR -m MODEL",
}
GENERATOR_COMMANDS = {
    "generate": "generate --seconds 1 -o OUT.wav -g MODEL -m TOKENIZER",
    "edit": "edit IN --span 0:0.2 -o OUT.wav -g MODEL -m TOKENIZER",
    "info": "info MODEL",
    "train generator": "train generator FOLDER -o OUT --batch-size 1 -m TOKENIZER --init MODEL",
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for index in range(8):
        write_audio(folder / f"{index}.wav", tone(8_000, index), 16_000)
        lines.append({"path": f"{index}.wav", "labels": {"height": f"{index % 2}"}})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def run(losatok, recordings, model_folder, generator_folder, tmp_path):
    """Run a command of the tables above with ``model`` as its MODEL."""

    def go(command, model):
        places = {
            "IN": recordings / "0.wav",
            "FOLDER": recordings,
            "MANIFEST": recordings / "manifest.jsonl",
            "LATENTS": tmp_path / "0.losatok",
            "OUT": tmp_path / "out",
            "OUT.wav": tmp_path / "out.wav",
            "MODEL": model,
            "TOKENIZER": model_folder,
            "GENERATOR": generator_folder,
        }
        if "LATENTS" in command:
            assert losatok("encode", recordings / "0.wav", "-o", tmp_path, "-m", model_folder).code == 0
        return losatok(*(places.get(word, word) for word in command.split()))

    return go


def run_folder(folder, model):
    """The folder of a run whose model has a configuration and no weights."""
    (folder / "run" / "model").mkdir(parents=True)
    (folder / "run" / RUN_FILE).parent.mkdir()
    (folder / "run" / RUN_FILE).write_text(json.dumps({"stage": "tokenizer"}))
    (folder / "run" / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    return folder / "run"


@pytest.mark.parametrize("command", TOKENIZER_COMMANDS)
def test_a_run_folder_is_opened(run, model_folder, tmp_path, command):
    result = run(TOKENIZER_COMMANDS[command], run_folder(tmp_path, model_folder))
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert "run/model/model.safetensors does not exist" in result.err


@pytest.mark.parametrize("command", [name for name in TOKENIZER_COMMANDS if name != "info"])
def test_a_generator_in_the_place_of_a_tokenizer_is_named(run, generator_folder, command):
    result = run(TOKENIZER_COMMANDS[command], generator_folder)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert f"{generator_folder} holds a generator, and a tokenizer is needed here; --generator" in result.err


@pytest.mark.parametrize("command", GENERATOR_COMMANDS)
def test_a_generators_run_folder_is_opened(run, generator_folder, tmp_path, command):
    result = run(GENERATOR_COMMANDS[command], run_folder(tmp_path, generator_folder))
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert "run/model/model.safetensors does not exist" in result.err


@pytest.mark.parametrize("command", [name for name in GENERATOR_COMMANDS if name != "info"])
def test_a_tokenizer_in_the_place_of_a_generator_is_named(run, model_folder, command):
    result = run(GENERATOR_COMMANDS[command], model_folder)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert f"{model_folder} holds a tokenizer, and a generator is needed here; --model" in result.err


def test_a_run_without_its_model_is_named(run, model_folder, tmp_path):
    folder = run_folder(tmp_path, model_folder)
    (folder / "model" / "config.json").unlink()
    (folder / "model").rmdir()
    assert (
        f"{folder} is the folder of a run that has not written its model yet"
        in run("encode IN -o OUT -m MODEL", folder).err
    )


def test_info_describes_models_runs_and_checkpoints(losatok, model_folder, generator_folder, tmp_path):
    folder = run_folder(tmp_path, model_folder)
    (folder / "model" / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    (folder / "checkpoints" / "step-00000030").mkdir()
    published = LoSATok.from_pretrained(model_folder).to_reference_state_dict()
    save_file(published, tmp_path / "weights.safetensors")
    paths = (model_folder, generator_folder, folder, tmp_path / "weights.safetensors", "tiny")
    tokenizer, generator, run, weights, bundled = json.loads(losatok("info", "--json", *paths).out)
    assert (tokenizer["format"], tokenizer["model_type"]) == ("model", "losatok")
    assert (generator["format"], generator["model_type"]) == ("model", "losatok-generator")
    assert generator["dit"]["tokenizer"] == tokenizer["fingerprint"]
    assert (run["format"], run["stage"], run["last_checkpoint"]) == ("run", "tokenizer", 30)
    assert run["model"] == {**tokenizer, "path": str(folder / "model")}
    assert weights["format"] == "published checkpoint"
    assert weights["weights"] >= tokenizer["weights"]
    for field in (
        "embed_dim",
        "depth",
        "latent_dim",
        "bottleneck_dim",
        "decoder_dim",
        "decoder_depth",
        "decoder_hidden",
    ):
        assert weights[field] == tokenizer[field], field
    assert bundled["latent_dim"] == 64
    shown = losatok("info", *paths)
    assert (shown.code, shown.err) == (0, "")
    assert "dit: tokenizer" in shown.out


def test_info_describes_a_published_semantic_encoder(losatok, model_folder, tmp_path):
    published = LoSATok.from_pretrained(model_folder).to_reference_state_dict()
    prefix = "semantic_encoder.encoder."
    state = {
        "audio_encoder." + name.removeprefix(prefix): t for name, t in published.items() if name.startswith(prefix)
    }
    (tmp_path / "midashenglm").mkdir()
    save_file(state, tmp_path / "midashenglm" / "model.safetensors")
    (facts,) = json.loads(losatok("info", "--json", tmp_path / "midashenglm").out)
    assert (facts["parts"], facts["embed_dim"], facts["depth"]) == (["semantic_encoder"], 32, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_info_names_the_dtype_of_the_weights(losatok, model_folder, tmp_path, dtype):
    state = load_file(model_folder / "model.safetensors")
    half = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in state.items()}
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    put_weights(tmp_path, half)
    assert json.loads(losatok("info", "--json", tmp_path).out)[0]["dtype"] == dtype


def test_info_on_a_folder_of_something_else(losatok, tmp_path):
    (tmp_path / "notes").mkdir()
    result = losatok("info", tmp_path / "notes")
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "notes is neither a model folder, the folder of a run, nor a published checkpoint" in result.err
