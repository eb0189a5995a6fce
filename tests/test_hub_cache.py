"""What the cache holds of a model, what is taken as an id, and what is fetched before weights."""

import json
import logging
import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest
from factories import write_model_directory, write_tokenizer
from test_hub import said, server

from jaxdefense import hub
from jaxdefense.config import DefendTextConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.defense.diffusion import below
from jaxdefense.errors import RunError
from jaxdefense.files import say_once

__all__ = ["server"]  # a fixture
OFFLINE = "HF_HUB_OFFLINE"
TOKENIZER = {"vocab.json", "merges.txt", "tokenizer_config.json"}


def fetch(*files, repo="me/clip", revision=None):
    """Fetch single files, as other programs do; the client keeps no list of all there are."""
    for file in files:
        huggingface_hub.hf_hub_download(repo, file, revision=revision)


@pytest.fixture
def shards(server, tmp_path):
    """The id of a model of three shards, with its commit."""
    sha = server.add("me/shards", write_model_directory(tmp_path / "served/shards", num_shards=3))
    texts = ("config.json", "preprocessor_config.json", "model.safetensors.index.json", *TOKENIZER)
    fetch(*texts, "model-00001-of-00003.safetensors", repo="me/shards", revision=sha)
    return f"me/shards@{sha}"


def test_shards_that_the_cache_lacks_are_fetched(shards, server):
    server.asked.clear()
    assert len(read_model_directory(shards).weight_files) == 3
    assert sorted(server.asked) == [f"model-0000{i}-of-00003.safetensors" for i in (2, 3)]


def test_some_shards_in_the_cache_are_no_model(shards, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, OFFLINE, True)
    code, line = said(capsys, "ledger", shards)
    assert code == 2 and "nor is it whole in" in line


@pytest.mark.parametrize(
    "lost, what",
    [(TOKENIZER, "a tokenizer"), ({"merges.txt"}, "a tokenizer"),
     ({"preprocessor_config.json"}, "a preprocessor_config.json")],
)  # fmt: skip
def test_texts_that_the_cache_lacks_are_fetched(server, tmp_path, monkeypatch, caplog, lost, what):
    sha = server.add("me/clip", folder := tmp_path / "served/clip")
    fetch(*({file.name for file in folder.iterdir()} - lost), revision=sha)
    monkeypatch.setattr(huggingface_hub.constants, OFFLINE, True)
    assert read_model_directory(f"me/clip@{sha}").digest()
    assert f"is without {what}" in caplog.text  # it may have none: whoever needs it says so
    monkeypatch.setattr(huggingface_hub.constants, OFFLINE, False)
    hub._snapshot.cache_clear()
    server.asked.clear()
    read_model_directory(f"me/clip@{sha}")
    assert set(server.asked) == lost


def test_whole_commit_in_the_cache_is_read_without_the_hub(server, tmp_path):
    given = hub.pinned("me/clip")
    hub._snapshot.cache_clear()
    server.broken = True
    assert read_model_directory(given).digest()


@pytest.mark.parametrize(
    "given", ["modèle/clip", "foo/bar--baz", "foo/bar.", "foo/bar.git", f"me/{'b' * 97}"]
)
def test_what_the_hub_never_takes_is_a_path(server, capsys, given):
    assert hub.find_id(given) is None
    code, line = said(capsys, "convert", given, "out", "--to", "openclip")
    assert code == 2 and f"`{given}" in line
    code, line = said(capsys, "convert", f"hf-hub:{given}", "out", "--to", "openclip")
    assert code == 2 and "is no directory here, and cannot be an id" in line


def test_path_that_is_taken_as_an_id_is_said_once(server, caplog):
    say_once.cache_clear()
    for _ in range(2):
        read_model_directory("me/clip")
        hub._snapshot.cache_clear()
    (record,) = [x for x in caplog.records if x.levelno == logging.WARNING]
    said = "`me/clip` is no directory here, and is taken as the id of a model"
    assert record.getMessage().startswith(said)


def test_what_is_written_as_an_id_alone_is_no_guess(server, tmp_path, caplog):
    sha = server.add("me/clip", tmp_path / "served/clip")
    say_once.cache_clear()
    for given in (f"me/clip@{sha}", "hf-hub:me/clip"):
        read_model_directory(given)
    assert "is no directory here" not in caplog.text


def test_guess_is_said_without_the_hub_too(server, monkeypatch, caplog):
    read_model_directory("me/clip")
    hub._snapshot.cache_clear()
    say_once.cache_clear()
    caplog.clear()
    monkeypatch.setattr(huggingface_hub.constants, OFFLINE, True)
    read_model_directory("me/clip")
    assert "`me/clip` is no directory here" in caplog.text


def pipeline(root, **encoders):
    """Write a pipeline: encoders by their folders, each of its class; weights only of CLIP's."""
    for folder, kind in encoders.items():
        if kind.startswith("CLIP"):
            vocab = write_tokenizer(root / folder.replace("text_encoder", "tokenizer"))
            options = {"architecture": kind, "vocab_size": vocab, "with_tokenizer": False}
            write_model_directory(root / folder, **options)
        else:
            (root / folder).mkdir(parents=True)
            (root / folder / "config.json").write_text('{"model_type": "t5"}')
            (root / folder / "model.safetensors").write_bytes(b"x")
    parts = {folder: ["transformers", kind] for folder, kind in encoders.items()}
    index = {"_class_name": "SomePipeline", **parts}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def test_pipeline_is_fetched_with_the_encoder_that_is_clips(server, tmp_path):
    encoders = {"text_encoder": "T5EncoderModel", "text_encoder_2": "CLIPTextModel"}
    server.add("me/t5", pipeline(tmp_path / "served/t5", **encoders))
    given = hub.pinned("me/t5")
    assert read_model_directory(given).source.name == "text_encoder_2"
    hub._snapshot.cache_clear()
    assert read_model_directory(given).source.name == "text_encoder_2"
    assert not [x for x in server.asked if x.startswith("text_encoder/")]


@pytest.mark.parametrize(
    "given, message",
    [
        ("me/t5", "`me/t5@"),
        ("me/t5/text_encoder", "text_encoder/config.json"),
        ("me/llama", "`me/llama@"),
    ],
)
def test_weights_of_another_kind_of_model_are_not_fetched(server, tmp_path, capsys, given, message):
    server.add("me/t5", pipeline(tmp_path / "served/t5", text_encoder="T5EncoderModel"))
    shutil.copytree(tmp_path / "served/t5/text_encoder", tmp_path / "served/llama")
    server.add("me/llama", tmp_path / "served/llama")
    code, line = said(capsys, "convert", given, "out", "--to", "openclip")
    assert code == 2 and message in line
    assert not [x for x in server.asked if x.endswith(".safetensors")]


def test_hub_without_an_answer_ends_the_command_at_once(server, capsys):
    assert below(DefendTextConfig, ["--model", "me/none"]) == {}  # whoever reads it reports it
    server.broken = True
    with pytest.raises(RunError, match="503"):
        below(DefendTextConfig, ["--model", "me/clip"])
    code, line = said(capsys, "defend", "text", "--model", "me/clip")
    assert code == 1 and "503" in line
