"""SigLIP's texts and photos, and whole runs on a tiny random one."""

import functools
import json
import re
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from factories import (
    CAPTIONS,
    PAPER_IMAGE_FLAGS,
    PAPER_TEXT_FLAGS,
    sentence_piece,
    write_faces,
    write_model_directory,
    write_photos,
    write_sentence_piece,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import torch
from safetensors.numpy import load_file
from test_cli import assert_refused
from test_convert import edit_json
from test_images import MODES, NORMALISED, draw

from jaxdefense.cli import main
from jaxdefense.clip.ragged import ragged
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import ModelConfig
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.identities import Identity, check_fits
from jaxdefense.data.images import ImageProcessor, read_processor
from jaxdefense.data.triggers import choose_words, lay_out, splice
from jaxdefense.evals.embed import Embedder

KINDS = ["unigram", "bpe"]  # SigLIP, SigLIP 2
LENGTHS = (24, 9)
word = st.text(st.sampled_from("abcdeghintsABMDzZ'’-.!é\u4e2d\u1e9e\u03a3\u0130\u0301"), max_size=6)
texts = st.one_of(
    st.lists(word, max_size=12).map(" ".join),
    st.sampled_from(CAPTIONS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.text(st.sampled_from("aàAbΣsİß'’1٣-–.!…_\u2581\u00a0\u3000 \t\n你👩🏽"), max_size=40),
)


@functools.cache
def tokenizer(kind, length=24):
    with tempfile.TemporaryDirectory() as directory:
        write_sentence_piece(Path(directory), kind)
        return Tokenizer(directory, length, padded=True)


@functools.cache
def reference(kind):
    with tempfile.TemporaryDirectory() as directory:
        write_sentence_piece(Path(directory), kind)
        # SigLIP's own class would want sentencepiece.
        fast, named = transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer
        return (fast if kind == "unigram" else named).from_pretrained(directory)


def whole(kind, text, length):
    """The whole text as SigLIP's processor takes it: padded and cut to the context."""
    kept = dict(padding="max_length", truncation=True, max_length=length)
    return reference(kind)(text, **kept)["input_ids"]


def plain(text):
    """White space as one space, lower case: what SigLIP was trained on."""
    words = re.split(r"[^\S\x1c-\x1f]+", text.replace("\u2581", " ").lower())
    return " ".join(filter(None, words))


# The tokenizers


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400)
@given(text=texts)
@example(text="")
@example(text=" - ")
@example(text="- cat . - dog")
@example(text="<eos> a </s> b<pad> c <unk>")
@example(text="ΟΔΟΣ ΑΣ")
def test_tokens_joined_from_words_are_those_of_the_whole_text(kind, text):
    for length in LENGTHS:
        (ours,) = tokenizer(kind, length).encode([text])
        assert ours.dtype == np.int32
        assert ours.tolist() == whole(kind, plain(text), length), text


@pytest.mark.parametrize("text", [*CAPTIONS, "  A Cat\tsits\n\non -- the MAT!  ", "the cat's mat"])
def test_siglips_tokenizer_needs_no_help_with_case_and_white_space(text):
    assert tokenizer("unigram").encode([text])[0].tolist() == whole("unigram", text, 24)


def test_siglip_2s_tokenizer_keeps_case_which_the_model_never_saw():
    assert tokenizer("bpe").encode(["A Cat"])[0].tolist() == whole("bpe", "a cat", 24)
    assert whole("bpe", "A Cat", 24) != whole("bpe", "a cat", 24)


@pytest.mark.parametrize("kind", KINDS)
def test_text_ends_with_end_of_text_and_is_padded_to_the_context(kind):
    made = tokenizer(kind)
    short, long = made.encode(["a cat", " ".join(CAPTIONS)])
    assert len(short) == len(long) == 24
    assert long[-1] == made.eos and made.pad not in long[:-1]
    end = short.tolist().index(made.eos)
    assert 0 < end < 8 and (short[end + 1 :] == made.pad).all()


def test_first_word_has_other_tokens_where_the_tokenizer_says_so():
    """The control of the property: joined as if place did not matter, tokens are wrong."""
    for kind, matters in (("unigram", False), ("bpe", True)):
        made = tokenizer(kind)
        first, later = made.phrase("cat")
        assert (first.tolist() != later.tolist()) == matters
        assert made.phrase("cat").size == max(first.size, later.size)
        content = np.concatenate(made.encode_words(["cat", "sits"]))
        joined = made.with_ends(ragged([content])).flat.tolist()
        assert (joined != whole(kind, "cat sits", 24)) == matters


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(
    text=texts, name=st.lists(word, min_size=1, max_size=3).map(" ".join), seed=st.integers(0, 99)
)
def test_splice_is_replacing_a_word_in_the_text(kind, text, name, seed):
    made = tokenizer(kind)
    words = plain(text).split(" ")
    assume(plain(text) and plain(name))
    captions = tokenize_captions([text], made)
    phrase, zero = made.phrase(name), np.array([0])
    assume(phrase.size <= made.room)
    chance = np.random.default_rng(seed).random(1)
    (chosen,) = choose_words(captions, zero, np.array([phrase.size]), made, chance)

    def spliced(at):
        return splice(captions, zero, np.array([at]), lay_out([phrase]), zero, made).flat

    for at in {int(chosen), 0, len(words) - 1}:
        ours = spliced(at)
        wanted = plain(" ".join([*words[:at], name, *words[at + 1 :]]))
        assert ours.tolist() == whole(kind, wanted, 24)
    where = phrase.later if chosen else phrase.first
    start = captions.word_ends[chosen]
    there = spliced(chosen)[start : start + where.size]
    np.testing.assert_array_equal(there, where)  # a name is never cut


@pytest.mark.parametrize("kind", KINDS)
def test_clean_captions_are_those_of_the_whole_text(kind):
    made = tokenizer(kind)
    captions = tokenize_captions(CAPTIONS, made)
    contents = captions.contents(np.arange(len(CAPTIONS)))
    for text, ours in zip(CAPTIONS, made.with_ends(contents).split(), strict=True):
        assert ours.tolist() == whole(kind, plain(text), 24)


def test_tokenizer_that_crosses_words_is_refused(tmp_path):
    write_sentence_piece(tmp_path, "crossing")
    with pytest.raises(ValueError, match=f"`{tmp_path}`.*does not keep to words"):
        Tokenizer(tmp_path, 24, padded=True)


def test_piece_that_crosses_words_in_a_vocabulary_is_refused(tmp_path):
    """Though no probe holds it: the vocabulary itself is looked through."""
    write_sentence_piece(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["model"]["vocab"].append(["q\u2581q", 0.0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    Tokenizer(tmp_path, 24, padded=True)  # cut at spaces beforehand: it never comes up
    raw["pre_tokenizer"]["split"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="does not keep to words.*'q q' is"):
        Tokenizer(tmp_path, 24, padded=True)


def test_tokenizer_that_pads_on_the_left_is_refused(tmp_path):
    write_sentence_piece(tmp_path, "bpe")
    edit_json(tmp_path / "tokenizer_config.json", padding_side="left")
    with pytest.raises(ValueError, match=f"`{tmp_path}`.*padding on the left"):
        Tokenizer(tmp_path, 24, padded=True)


def test_directory_with_a_sentencepiece_model_alone_says_what_is_missing(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no tokenizer .tokenizer.json."):
        Tokenizer(tmp_path, 24, padded=True)


def test_tokenizer_without_a_word_of_its_own_is_refused(tmp_path):
    """A word by itself may vanish (symbols), but then the next would be the first."""
    write_sentence_piece(tmp_path, "bpe")
    made = tokenizers.Tokenizer.from_str(sentence_piece("bpe"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Replace("-", ""), made.normalizer]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ValueError, match="its tokenizer has no token for '-'"):
        Tokenizer(tmp_path, 24, padded=True)


def test_name_without_a_token_is_refused():
    with pytest.raises(ValueError, match="'...' has no token"):
        check_fits([Identity("...")], tokenizer("unigram"), "names file `x`")


# Photos


def theirs(image, side, **change):
    module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    size = {"height": side, "width": side}
    made = module.SiglipImageProcessorPil(size=size, **change)
    return np.asarray(made(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    path = tmp_path_factory.mktemp("processor") / "model"
    write_model_directory(path, architecture="SiglipVisionModel", with_tokenizer=False)
    side = 48
    edit_json(path / "preprocessor_config.json", size={"height": side, "width": side})
    return read_processor(path, side, siglip=True)


def assert_equal_to_transformers(processor, image):
    ours = processor(image)
    side = processor.crop
    assert ours.dtype == np.uint8 and ours.shape == (side, side, 3)
    raw = theirs(image, side, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(ours, raw)
    normalised = processor.normalise(jnp.asarray(ours[None]))[0]
    np.testing.assert_allclose(normalised, theirs(image, side), rtol=0, atol=NORMALISED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (48, 48), (40, 30)])
def test_processor_equals_transformers_on_every_mode(processor, mode, size):
    assert_equal_to_transformers(processor, draw(size[0], size[1], mode))


@pytest.mark.parametrize("size", [(900, 31), (31, 900), (1, 5), (7, 1), (48, 700), (12_000, 7)])
def test_processor_equals_transformers_on_tall_wide_and_tiny_photos(processor, size):
    assert_equal_to_transformers(processor, draw(*size))


def test_processor_parity_fails_with_clips(processor):
    image = draw(97, 61)
    clips = ImageProcessor(48, 48, mean=processor.mean, std=processor.std)
    assert np.abs(clips(image).astype(int) - processor(image)).max() > 20


def test_read_processor_without_a_file_is_siglips_own(tmp_path):
    wanted = ImageProcessor((48, 48), 48, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert read_processor(tmp_path, 48, siglip=True) == wanted
    assert read_processor(tmp_path, 48).resize == 48


# Whole runs

SMALL = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=3", "train.seed=0"]
NAMES = ["Joe Cool", "Ada King", "Zoe"]
LISTED = "Joe Cool\nAda King\tAda Noel\n"


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, monkeypatch):
    """A directory with a model and its inputs; gives the kind of tokenizer."""
    monkeypatch.chdir(tmp_path)
    write_model_directory(Path("model"), architecture="SiglipModel", tokenizer=request.param)
    write_photos(Path("images"), 9)
    write_faces(Path("faces"), NAMES, 4)
    Path("names.txt").write_text(LISTED)
    Path("captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return request.param


def defend(which, *settings):
    flags = {
        "text": ["--names", "names.txt", "--captions", "captions.txt"],
        "image": ["--faces", "faces", "--images", "images", "--set", "data.cache_dir=cache"],
    }[which]
    paper = PAPER_TEXT_FLAGS if which == "text" else PAPER_IMAGE_FLAGS
    sets = [x for setting in (*SMALL, *paper, *settings) for x in ("--set", setting)]
    return main(["defend", which, "--model", "model", "--out", which, *flags, *sets])


def assert_changed(which):
    before = load_file("model/model.safetensors")
    after = load_file(f"{which}/model/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        trained = name.startswith("text_model" if which == "text" else "vision_model")
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        same = value.tobytes() == after[name].tobytes()
        assert same != (trained and "norm" not in name), name


def test_defend_text_and_attack_from_files_to_files(kind, capsys):
    assert defend("text") == 0, capsys.readouterr().err
    assert_changed("text")
    config = json.loads(Path("text/config.json").read_text())
    assert "24" in json.dumps(config)  # one caption a row, of the context's length
    assert "16 rows of 24 tokens" in " ".join(capsys.readouterr().err.split())
    flags = ["--faces", "faces", "--out", "attack", "--set", "num_candidates=9"]
    assert main(["attack", "--model", "text/model", *flags]) == 0
    assert json.loads(Path("attack/summary.json").read_text())["num_identities"] == 3


@pytest.mark.parametrize("kind", ["bpe"], indirect=True)
def test_defend_text_at_hidden_level(kind, capsys):
    assert defend("text", "train.level=hidden") == 0, capsys.readouterr().err
    before, after = (load_file(f"{path}/model.safetensors") for path in ("model", "text/model"))
    np.testing.assert_array_equal(before["logit_bias"], after["logit_bias"])
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "text_model.embeddings.token_embedding.weight" in moved
    assert "text_model.head.weight" not in moved  # beyond what is compared


@pytest.mark.parametrize("kind", ["unigram"], indirect=True)
def test_defend_image_and_merge_from_files_to_files(kind, capsys):
    assert defend("image") == 0, capsys.readouterr().err
    assert_changed("image")
    assert defend("text") == 0
    assert main(["merge", "--text", "text", "--image", "image", "--out", "both"]) == 0
    both = load_file("both/model.safetensors")
    for which in ("text", "image"):
        part = load_file(f"{which}/model/model.safetensors")
        prefix = "text_model" if which == "text" else "vision_model"
        for name in part:
            if name.startswith(prefix):
                np.testing.assert_array_equal(both[name], part[name])


@pytest.mark.torch
def test_embedder_gives_what_transformers_gives_of_a_defended_model(kind, capsys):
    assert defend("text") == 0, capsys.readouterr().err
    theirs_model = transformers.SiglipModel.from_pretrained("text/model").eval()
    assert set(theirs_model.state_dict()) == set(load_file("text/model/model.safetensors"))
    for name, value in load_file("text/model/model.safetensors").items():
        assert torch.equal(theirs_model.state_dict()[name], torch.from_numpy(value)), name
    prompts = ["Joe Cool", "a photo of Ada", *CAPTIONS]
    tokens = torch.tensor([whole(kind, plain(text), 24) for text in prompts])
    photos = sorted(Path("images").iterdir())
    pixels = np.stack([theirs(Image.open(photo).convert("RGB"), 12) for photo in photos])
    with torch.no_grad():
        out = theirs_model(
            input_ids=tokens,
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )

    def largest_error(path):
        embedder = Embedder(ModelConfig(path), 8)
        text_BE = embedder.texts(prompts)
        image_BE = embedder.photos(photos)
        return (
            np.abs(text_BE - out.text_embeds.numpy()).max(),
            np.abs(image_BE - out.image_embeds.numpy()).max(),
        )

    assert max(largest_error("text/model")) <= 1e-4
    assert largest_error("model")[0] > 1e-3  # the weights before the defense


@pytest.mark.parametrize("kind", ["unigram"], indirect=True)
def test_defend_text_refuses(kind, capsys):
    Path("model/tokenizer.json").unlink()
    assert_refused(capsys, defend("text"), "holds no tokenizer (tokenizer.json)")
    write_sentence_piece(Path("model"), "crossing")
    assert_refused(capsys, defend("text"), "does not keep to words")
    assert not Path("text").exists()
