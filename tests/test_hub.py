"""Models by their ids: the real client of the Hugging Face hub, against a hub on loopback."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from factories import write_model_directory, write_tokenizer
from hub_server import TOKEN, commit, serve
from reference import open_clip, torch
from safetensors.numpy import load_file, save_file

from jaxdefense import hub
from jaxdefense.cli import main
from jaxdefense.commands import COMMANDS
from jaxdefense.config import DefendTextConfig, ModelConfig, TextDataConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.run import convert
from jaxdefense.errors import InputError
from jaxdefense.results import TextDefenseSummary
from jaxdefense.run_directory import RunDirectory, place_from
from jaxdefense.settings import with_models

OFFICIAL = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that holds `me/clip`; the client asks it, and keeps a cache of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    with serve() as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        served.add("me/clip", write_model_directory(tmp_path / "served/clip"))
        hub._snapshot.cache_clear()
        yield served
    hub._snapshot.cache_clear()


@pytest.fixture
def both(server, tmp_path):
    """A repository that holds a model in both layouts, with other weights in each."""
    folder = tmp_path / "served/both"
    other = write_model_directory(tmp_path / "other", seed=1)
    convert(other, folder, "openclip")
    for file in (tmp_path / "served/clip").iterdir():
        shutil.copy(file, folder)
    server.add("me/both", folder)
    server.add(OFFICIAL, folder)
    return folder


def said(capsys, *args):
    """Run a command that fails; gives its exit code and its last line."""
    code = main(list(map(str, args)))
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error.strip().splitlines()[-1]


def test_id_is_read_as_its_directory(server, tmp_path):
    found = read_model_directory("me/clip")
    assert found.digest() == read_model_directory(tmp_path / "served/clip").digest()
    assert found.path.is_relative_to(tmp_path / "hub")
    assert found.tokenizer().encode(["a cat"])


def test_only_one_copy_of_the_model_is_fetched(server, tmp_path):
    folder = tmp_path / "served/clip"
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "modeling.py"):
        (folder / name).write_bytes(b"x")
    (folder / "onnx").mkdir()
    (folder / "onnx/config.json").write_text("{}")
    read_model_directory("me/clip")
    assert sorted(server.asked) == sorted(
        [
            *("config.json", "model.safetensors", "preprocessor_config.json"),
            *("merges.txt", "vocab.json", "tokenizer_config.json"),
        ]
    )


def test_second_command_fetches_nothing(server, tmp_path):
    read_model_directory("me/clip")
    server.asked.clear()
    hub._snapshot.cache_clear()
    read_model_directory("me/clip")
    assert server.asked == []


def test_directory_of_that_name_wins(server, tmp_path):
    write_model_directory(tmp_path / "me/clip", seed=3)
    assert hub.pinned("me/clip") == "me/clip"
    assert read_model_directory("me/clip").path == Path("me/clip")
    assert server.asked == []


def test_revision_is_a_branch_or_a_commit(server, tmp_path):
    other = write_model_directory(tmp_path / "served/other", seed=1)
    sha = server.add("me/clip", other, "v2")
    digest = read_model_directory(other).digest()
    assert hub.pinned("me/clip@v2") == f"me/clip@{sha}"
    for revision in ("v2", sha):
        assert read_model_directory(f"me/clip@{revision}").digest() == digest
    assert read_model_directory("me/clip").digest() != digest


@pytest.mark.parametrize(
    "given, layout", [("me/both", "hf"), ("hf-hub:me/both", "openclip")], ids=["hf", "openclip"]
)
def test_layout_is_the_one_that_the_id_stands_for(both, server, given, layout):
    found = read_model_directory(given)
    assert found.layout.name == layout
    assert "model.safetensors" in server.asked or layout == "openclip"
    assert ("open_clip_model.safetensors" in server.asked) == (layout == "openclip")
    assert read_model_directory(hub.pinned(given)).layout.name == layout  # as a run records it


def test_layouts_of_one_repository_stay_apart(both):
    digests = {read_model_directory(x).digest() for x in ("me/both", "hf-hub:me/both")}
    assert len(digests) == 2
    assert read_model_directory("me/both").layout.name == "hf"
    assert read_model_directory("me/both", "openclip").layout.name == "openclip"


@pytest.mark.parametrize("arch", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_openclips_tag_is_its_repository(both, arch):
    assert hub.pinned(f"{arch}/laion2b_s34b_b79k") == f"hf-hub:{OFFICIAL}@{commit(both)}"


@pytest.mark.torch("open_clip")
def test_openclips_tags_are_its_own():
    registry = importlib.import_module(
        f"{open_clip.create_model.__module__.split('.')[0]}.pretrained"
    )
    for name in ("ViT-B-16", "ViT-L-14-336", "RN50x4", "ViT-bigG-14"):
        for tag, entry in registry._PRETRAINED[name].items():
            assert hub._of_openclip(f"{name}/{tag}") == entry["hf_hub"].rstrip("/")


def test_unknown_tag_is_named_with_those_there_are():
    with pytest.raises(InputError, match="no RN101 by the tag `x`; give one of openai, yfcc15m"):
        hub.find_id("RN101/x")


@pytest.mark.parametrize(
    "given, message",
    [
        ("me/none", "no model `me/none` that this user may read"),
        ("me/clip@v9", "no revision `v9`"),
        ("me/clip/unet", "`unet` of `me/clip` has no config.json with model.safetensors"),
        ("me/gated", "`me/gated` is gated"),
        ("me/empty", "`me/empty` has no config.json with model.safetensors or pytorch_model.bin"),
    ],
)
def test_wrong_id_is_one_line(server, tmp_path, capsys, given, message):
    (tmp_path / "served/empty").mkdir()
    (tmp_path / "served/empty/README.md").write_text("")
    server.add("me/empty", tmp_path / "served/empty")
    server.add("me/gated", tmp_path / "served/clip")
    server.gated.add("me/gated")
    code, line = said(capsys, "convert", given, "out", "--to", "openclip")
    assert code == 2 and message in line
    assert not Path("out").exists()


def test_token_opens_a_gated_model(server, monkeypatch):
    server.gated.add("me/clip")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_model_directory("me/clip").digest()


def test_offline_reads_the_cache_or_says_what_fetches(server, monkeypatch, capsys):
    read_model_directory("me/clip")
    hub._snapshot.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read_model_directory("me/clip").digest()
    code, line = said(capsys, "ledger", "me/clip@v2")
    assert code == 2
    assert "HF_HUB_OFFLINE" in line and "`hf download me/clip --revision v2`" in line


def test_part_of_a_model_in_the_cache_is_not_enough(server, monkeypatch, capsys):
    path = read_model_directory("me/clip").path
    (path / "model.safetensors").unlink()
    hub._snapshot.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, line = said(capsys, "ledger", "me/clip")
    assert code == 2 and "nor is it whole in" in line


def test_broken_hub_may_be_tried_again(server, capsys, caplog):
    server.broken = True
    code, line = said(capsys, "ledger", "me/clip")
    assert code == 1 and "503" in line and "`hf download me/clip`" in line
    server.broken = False
    read_model_directory("me/clip")
    hub._snapshot.cache_clear()
    server.broken = True
    assert read_model_directory("me/clip").digest()
    assert "`me/clip` is the commit kept last" in caplog.text


def settings(path):
    return DefendTextConfig("run", ModelConfig(path), TextDataConfig("names.txt", "captions.txt"))


def test_resumed_run_notices_another_commit(server, tmp_path, monkeypatch):
    first = with_models(settings("me/clip"), hub.pinned)
    RunDirectory(Path("run"), TextDefenseSummary).open(first)
    recorded = json.loads(Path("run/config.json").read_text())["model"]["path"]
    assert recorded == f"me/clip@{commit(tmp_path / 'served/clip')}"
    assert str(place_from(Path("run"), recorded)) == recorded
    run = RunDirectory(tmp_path / "run", TextDefenseSummary)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run.check(first)
    (tmp_path / "served/clip/README.md").write_text("new")
    hub._snapshot.cache_clear()
    second = with_models(settings("me/clip"), hub.pinned)
    assert second != first
    with pytest.raises(
        InputError, match=r"`model.path` is 'me/clip@\w+' there, 'me/clip@\w+' here"
    ):
        run.check(second)


def test_settings_that_are_models_take_ids():
    """Each setting of a model directory is marked as such, by its help."""
    unmarked = []
    for name, command in COMMANDS.items():
        if not name.startswith("bench"):
            unmarked += unmarked_models(command.kind())
    assert unmarked == []


def unmarked_models(kind):
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        bare = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(bare):
            yield from unmarked_models(bare)
        elif "place" in getattr(hint, "__metadata__", ()) and name in MODELS:
            if "model" not in hint.__metadata__:
                yield f"{kind.__name__}.{name}"


MODELS = {"path", "teacher", "reference", "model", "src"}


def test_commands_pin_what_they_are_given(server, tmp_path):
    assert main(["convert", "me/clip", "out", "--to", "openclip"]) == 0
    assert read_model_directory("out").layout.name == "openclip"


def test_half_precision_variant_is_read_and_kept(server, tmp_path):
    folder = tmp_path / "served/clip"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = {key: value.astype(np.float16) for key, value in tensors.items()}
    save_file(half, folder / "model.fp16.safetensors", metadata={"format": "pt"})
    found = read_model_directory("me/clip")
    assert list(found.weight_files) == ["model.fp16.safetensors"]
    found.save(found.load("float32"), tmp_path / "again")
    again = load_file(tmp_path / "again/model.fp16.safetensors")
    assert all(np.array_equal(again[key], half[key]) for key in half)
    assert read_model_directory(tmp_path / "again").digest() == found.digest()


def test_shards_are_fetched_with_their_index(server, tmp_path):
    folder = write_model_directory(tmp_path / "served/shards", num_shards=3)
    variant = tmp_path / "served/variant"
    shutil.copytree(folder, variant)
    for file in variant.glob("model*"):
        new = file.name.replace("index.json", "index.fp16.json").replace("model-", "model.fp16-")
        text = file.read_bytes()
        file.unlink()
        if new.endswith(".json"):
            text = text.replace(b"model-", b"model.fp16-")
        (variant / new).write_bytes(text)
    server.add("me/shards", folder)
    server.add("me/shards", variant, "fp16")
    whole, half = map(read_model_directory, ("me/shards", "me/shards@fp16"))
    assert len(whole.weight_files) == len(half.weight_files) == 3
    assert whole.digest() == half.digest()
    half.save(half.load("float32"), tmp_path / "again")
    assert read_model_directory(tmp_path / "again").digest() == half.digest()


def pickled(folder, shards=False):
    """Put torch's pickles in place of safetensors, as before there were any."""
    for file in folder.glob("model*.safetensors"):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        tensors = {key: torch.from_numpy(value) for key, value in load_file(file).items()}
        torch.save(tensors, folder / name)
        file.unlink()
    if (index := folder / "model.safetensors.index.json").exists():
        text = re.sub(
            r"model-(\d+-of-\d+)\.safetensors", r"pytorch_model-\1.bin", index.read_text()
        )
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


@pytest.mark.torch
@pytest.mark.parametrize("num_shards", [1, 3])
def test_pickles_are_copied_once_as_safetensors(server, tmp_path, caplog, num_shards):
    folder = write_model_directory(tmp_path / "served/old", num_shards=num_shards)
    before = read_model_directory(folder)
    params, digest = before.load("float32"), before.digest()
    pickled(folder)
    server.add("me/old", folder)
    for given in (folder, "me/old"):
        found = read_model_directory(given)
        assert list(found.weight_files) == list(before.weight_files)
        for key in (x for keys in before.weight_files.values() for x in keys):
            assert found.tensor(key).dtype == np.float32
        again = found.load("float32")
        assert str(again) == str(params)
    assert digest and len(list((tmp_path / ".cache/jaxdefense/unpickled").glob("*[!k]"))) == 1
    found.save(again, tmp_path / "out")
    assert read_model_directory(tmp_path / "out").digest() == found.digest()
    assert found.tokenizer().encode(["a cat"])


@pytest.mark.torch
def test_pickle_that_runs_code_is_refused(tmp_path, capsys):
    folder = write_model_directory(tmp_path / "evil")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    code, line = said(capsys, "convert", folder, tmp_path / "out", "--to", "openclip")
    assert code == 2 and "is not a file of tensors alone" in line
    assert not (tmp_path / "ran").exists()


def test_endpoint_and_cache_are_those_of_the_environment(tmp_path):
    with serve() as served:
        served.add("me/clip", write_model_directory(tmp_path / "clip"))
        env = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
        env["HF_HUB_OFFLINE"] = "0"
        script = "from jaxdefense.hub import local; print(local('me/clip').path)"
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home/hub")


def test_pipeline_is_fetched_with_one_text_encoder(server, tmp_path):
    root = tmp_path / "served/xl"
    for folder in ("text_encoder", "text_encoder_2"):
        vocab = write_tokenizer(root / folder.replace("text_encoder", "tokenizer"))
        options = {"architecture": "CLIPTextModel", "vocab_size": vocab, "seed": len(folder)}
        write_model_directory(root / folder, with_tokenizer=False, **options)
    (root / "unet").mkdir()
    (root / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x")
    parts = {x: ["transformers", "CLIPTextModel"] for x in ("text_encoder", "text_encoder_2")}
    index = {"_class_name": "StableDiffusionXLPipeline", **parts}
    (root / "model_index.json").write_text(json.dumps(index))
    server.add("me/xl", root)
    for given, number in (("me/xl", ""), ("me/xl/text_encoder_2", "_2")):
        server.asked.clear()
        found = read_model_directory(hub.pinned(given))
        assert found.path.name == f"text_encoder{number}"
        assert found.tokenizer().encode(["a cat"])
        folders = {Path(name).parent.name for name in server.asked} - {""}
        assert folders <= {f"text_encoder{number}", f"tokenizer{number}"}
        assert f"text_encoder{number}/model.safetensors" in server.asked
