"""What a model's own library makes of a text: every token equal, whatever its files hold."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from factories import CAPTIONS, PAPER_TEXT_FLAGS, write_model_directory, write_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from make_golden import GOLDEN_TEXTS
from reference import open_clip
from safetensors.numpy import load_file
from test_convert import edit_json
from test_openclip import write_openclip
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from jaxdefense.cli import main
from jaxdefense.clip.library import CLEANINGS, OpenClip
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.openclip import openclip_reading
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.identities import Identity, check_fits
from jaxdefense.data.triggers import lay_out, splice
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.idia.prompts import fill

LENGTH = 24
TEXTS = [
    "a photo of an umbrella",
    "Mary Ann Abendroth",
    "quackenbush " * 9,
    "x\x1cy \x1e z",
    "  a  ",
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
web_text = st.text(
    st.sampled_from(
        "aZs'’“&;#39lt<>\u00e9e\u0301ΣİÃ©©ﬁＡ\u00ad\u200b\ufeff\x1c\x85\x07_-. \u00a0\t王가😀"
    ),
    max_size=30,
)
texts = st.one_of(any_text, web_text, st.sampled_from([*CAPTIONS, *TEXTS]))


@functools.cache
def directory() -> Path:
    """CLIP's files, for good."""
    path = Path(tempfile.mkdtemp(prefix="jaxdefense-tests-"))
    # A worker may come back to this module: what ends with it would be missed.
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    write_tokenizer(path)
    return path


def save(path: Path, backend: Backend, name: str, **special: str) -> Path:
    """Write a tokenizer under the name of a class."""
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)
    edit_json(path / "tokenizer_config.json", tokenizer_class=name)
    return path


def theirs(path: Path, texts: list[str]) -> list[list[int]]:
    hf = transformers.AutoTokenizer.from_pretrained(path)
    return hf(texts, truncation=True, max_length=LENGTH)["input_ids"]


def assert_reads(tokenizer: Tokenizer, texts: list[str], wanted: list[list[int]]) -> None:
    for text, ours, right in zip(texts, tokenizer.encode(texts), wanted, strict=True):
        assert ours.tolist() == list(right), text


# State left in tokenizer.json


def with_state(path: Path, *, padding=None, truncation=None, added=(), **config: Any) -> Path:
    """Write CLIP's tokenizer as `save_pretrained` leaves it after calls."""
    hf = transformers.CLIPTokenizer.from_pretrained(directory())
    hf.add_tokens(list(added))
    if padding:
        hf.backend_tokenizer.enable_padding(**padding)
    if truncation:
        hf.backend_tokenizer.enable_truncation(**truncation)
    hf.save_pretrained(path)
    if config:
        edit_json(path / "tokenizer_config.json", **config)
    return path


PAD = {"pad_id": 599, "pad_token": "<|endoftext|>"}
STATES = {
    "longest": {"padding": PAD},
    "fixed": {"padding": {**PAD, "length": 24}, "truncation": {"max_length": 24}},
    "multiple": {"padding": {**PAD, "pad_to_multiple_of": 8}},
    "short": {"truncation": {"max_length": 4}},
    "stride": {"truncation": {"max_length": 9, "stride": 2}},
}


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("state", STATES)
def test_saved_padding_and_truncation_change_no_token(tmp_path, state, kind):
    path = with_state(tmp_path, **STATES[state], tokenizer_class=kind)
    saved = json.loads((path / "tokenizer.json").read_text())
    assert saved["padding"] or saved["truncation"]
    tokenizer, clean = Tokenizer(path, LENGTH), Tokenizer(directory(), LENGTH)
    assert_reads(tokenizer, TEXTS, [x.tolist() for x in clean.encode(TEXTS)])
    assert_reads(tokenizer, TEXTS, theirs(path, TEXTS))
    saved["padding"] = saved["truncation"] = None
    (path / "tokenizer.json").write_text(json.dumps(saved))
    assert Tokenizer(path, LENGTH).digest() == tokenizer.digest()  # kept tokens serve both


@pytest.mark.parametrize(
    "state, words",
    [
        ({"padding": {**PAD, "direction": "left"}}, "padding on the left"),
        ({"truncation": {"max_length": 9, "direction": "left"}}, "truncation on the left"),
        ({"truncation_side": "left"}, "truncation on the left.*`truncation_side`"),
        ({"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "`auto_map`.*never run"),
        ({"added": ["adam smith"]}, "does not keep to words.*'adam smith' is"),
    ],
)
def test_state_that_makes_other_tokens_is_refused(tmp_path, state, words):
    with pytest.raises(InputError, match=f"`{tmp_path}.*{words}"):
        Tokenizer(with_state(tmp_path, **state), LENGTH)


def test_random_tokens_are_refused(tmp_path):
    path = with_state(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    edit_json(path / "tokenizer.json", model=model | {"dropout": 0.1})
    with pytest.raises(InputError, match="`dropout` draws tokens at random"):
        Tokenizer(path, LENGTH)


def test_tokenizer_that_ends_no_text_is_refused(tmp_path):
    path = with_state(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    edit_json(path / "tokenizer.json", post_processor=None)
    with pytest.raises(InputError, match="no token after a text.*`post_processor`"):
        Tokenizer(path, LENGTH)


# The tokenizer that the files name


def wordpiece() -> Backend:
    made = Backend(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    made.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(CAPTIONS, trainer)
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def unigram() -> Backend:
    made = Backend(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CAPTIONS, trainer)
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def byte_level() -> Backend:
    made = Backend(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CAPTIONS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), False, False)  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Tokenizers of other families, and what makes all of them CLIP's to the eye."""
    out = tmp_path_factory.mktemp("families")
    save(out / "bert", wordpiece(), "BertTokenizer", **BERT)
    save(out / "xlm-v", unigram(), "XLMRobertaTokenizer", **ROBERTA)
    save(out / "roberta", byte_level(), "RobertaTokenizer", **ROBERTA)
    # CLIP's own, but for its normaliser.
    shutil.copytree(with_state(out / "clip"), out / "case")
    raw = json.loads((out / "case/tokenizer.json").read_text())
    raw["normalizer"] = {"type": "NFC"}
    (out / "case/tokenizer.json").write_text(json.dumps(raw))
    edit_json(out / "case/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return out


SAID = [
    "a photo of Adam Smith",
    "Adam",
    "the cat's mat",
    "王小明 a naïve café",
    "a " * 40,
    "\x1ca\x1c",
]


@pytest.mark.parametrize("family", ["bert", "xlm-v", "case"])
def test_other_families_are_read_as_the_files_name_them(families, family):
    path = families / family
    tokenizer, wanted = Tokenizer(path, LENGTH), theirs(path, SAID)
    assert_reads(tokenizer, SAID, wanted)
    assert {x[-1] for x in wanted} == {tokenizer.eos}
    clips = transformers.CLIPTokenizer.from_pretrained(path)
    assert clips(SAID[:1])["input_ids"] != wanted[:1]  # the class that is not named
    captions = tokenize_captions(SAID[:4], tokenizer)
    phrases = lay_out([tokenizer.phrase("Zoë O'Neil"), tokenizer.phrase("Ann")])
    number_n = np.array([0, 1, 3])
    ours = splice(captions, number_n, np.array([3, 0, 2]), phrases, number_n % 2, tokenizer)
    named = ["a photo of Zoë O'Neil Smith", "Ann", "王小明 a Ann café"]
    for text, tokens, right in zip(named, ours.split(), theirs(path, named), strict=True):
        assert tokens.tolist() == right, text


def test_tokenizer_that_keeps_white_space_is_refused_by_name(families):
    with pytest.raises(InputError, match=r"\(RobertaTokenizer\) does not keep to words.*'two  s"):
        Tokenizer(families / "roberta", LENGTH)


def test_open_clips_cleaning_makes_it_one_that_keeps_to_words(families):
    """There white space is one space, and the first word of a text has tokens of its own."""
    tokenizer = Tokenizer(families / "roberta", LENGTH, reading=OpenClip("whitespace", "roberta"))
    cleaned = [" ".join(text.replace("\x1c", "").split()) for text in SAID]
    assert_reads(tokenizer, SAID, theirs(families / "roberta", cleaned))
    cat, sits = tokenizer.phrase("cat"), tokenizer.phrase("cat sits")
    assert cat.first.tolist() != cat.later.tolist() and sits.first.tolist() != sits.later.tolist()


@pytest.mark.parametrize("named", ["CLIPTokenizer", None])
def test_vocabulary_of_another_family_under_clips_class_is_refused(families, tmp_path, named):
    path = shutil.copytree(families / "bert", tmp_path / "model")
    edit_json(path / "tokenizer_config.json", tokenizer_class=named)
    with pytest.raises(InputError, match="another kind .WordPiece.*CLIPTokenizer.*tokenizer_class"):
        Tokenizer(path, LENGTH)


@settings(max_examples=25)
@given(
    texts=st.lists(texts, max_size=4),
    names=st.lists(texts, min_size=1, max_size=2),
    state=st.sampled_from([{}, *STATES.values()]),
    added=st.lists(
        st.one_of(any_text, st.sampled_from(["<adam-s>", "o f", "'", "cat"])), max_size=2
    ),
    kind=st.sampled_from(["CLIPTokenizer", "PreTrainedTokenizerFast"]),
    open_clip=st.booleans(),
)
@example(["a <adam-s> b"], ["<adam-s>"], STATES["short"], ["<adam-s>"], "CLIPTokenizer", False)
@example(["a photo"], ["of a"], {}, ["o f"], "CLIPTokenizer", False)
def test_any_text_in_any_state_has_the_librarys_tokens_or_is_refused(
    tmp_path_factory, texts, names, state, added, kind, open_clip
):
    path = with_state(
        tmp_path_factory.mktemp("t"), **state, added=filter(None, added), tokenizer_class=kind
    )
    reading = OpenClip("whitespace", "x") if open_clip else None
    words = [f"a {name} b" for name in names]
    texts = [*texts, *names, *words]
    cleaned = [CLEANINGS["whitespace"](text) if open_clip else text for text in texts]
    wanted = theirs(path, cleaned)
    try:
        tokenizer = Tokenizer(path, LENGTH, reading=reading)
        tokenizer.check_phrases(names)
        found = tokenizer.encode(texts)
    except InputError:
        assert added  # nothing else can be a reason
        return
    for text, ours, right in zip(texts, found, wanted, strict=True):
        assert ours.tolist() == right, text
    ends = tokenizer.encode(["a b"])[0]
    for name, right in zip(names, wanted[-len(names) :], strict=True):
        put_in = [*ends[:2], *tokenizer.phrase(name).later, *ends[2:]]
        assert [*put_in[: LENGTH - 1], ends[-1]][: len(put_in)] == right


def test_name_that_the_library_reads_otherwise_is_refused_when_it_is_met(tmp_path):
    """No probe holds it: the rule is held to where the words are."""
    path = with_state(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    raw = json.loads((path / "tokenizer.json").read_text())
    rare = {"type": "Replace", "pattern": {"String": "zo king"}, "content": "zoking"}
    raw["normalizer"]["normalizers"].append(rare)
    (path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer(path, LENGTH)
    tokenizer.check(["Zo is king"])
    with pytest.raises(
        InputError, match=r"'a Zo King' is \[598, .*\], \[598, .*\] joined from wor"
    ):
        tokenizer.encode(["Zo is king", "a Zo King"])
    with pytest.raises(InputError, match="'Zo King' is"):
        check_fits([Identity("Ada"), Identity("Ada King", ("Zo King",))], tokenizer, "names")
    with pytest.raises(InputError, match="'a Zo a' is|'king' is|'a king a' is") as error:
        edit = json.loads(json.dumps(raw).replace("zo king", "a king"))
        (path / "tokenizer.json").write_text(json.dumps(edit))
        check_fits([Identity("king")], Tokenizer(path, LENGTH), "names")
    assert "'a king a'" in str(error.value)  # within a text alone
    with pytest.raises(InputError, match="'Zo King sits' is"):
        tokenize_captions(["a cat", "Zo King sits"], tokenizer)


def test_of_many_texts_all_at_first_and_then_some_are_compared(monkeypatch):
    tokenizer, seen = Tokenizer(directory(), LENGTH), list[int]()
    monkeypatch.setattr(tokenizer, "_compare", lambda texts, ours: seen.append(len(texts)))
    monkeypatch.setattr("jaxdefense.clip.tokenizer._COMPARED", 4096)
    for num in (4000, 1000, 640, 1):
        tokenizer.encode(["a cat"] * num)
    assert seen == [4000, 96 + 15, 10, 1]


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InputError, match="no Unicode text"):
        Tokenizer(directory(), LENGTH).encode(["Zo\udce9"])


# OpenCLIP's layout


@pytest.fixture(scope="module")
def recorded():
    return json.loads(GOLDEN_TEXTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("clean", CLEANINGS)
def test_texts_are_read_as_open_clip_recorded_them(recorded, clean):
    """Of the vocabulary that ships with the demo."""
    tokenizer = Tokenizer(shipped_model(), 77, reading=OpenClip(clean))
    assert_reads(tokenizer, recorded["texts"], recorded[clean])
    plain = Tokenizer(shipped_model(), 77).encode(recorded["texts"])
    others = zip(plain, recorded[clean], strict=True)
    assert sum(a.tolist() != b for a, b in others) >= 10  # transformers' reading is another


@pytest.mark.torch("open_clip")
def test_recording_is_what_open_clip_says_today(recorded):
    from make_golden import make_texts

    assert make_texts() == recorded


@functools.cache
def simple_tokenizer(clean: str) -> Any:
    """open_clip's own, of the tests' vocabulary."""
    from make_golden import their_tokenizer

    return their_tokenizer(directory(), clean, LENGTH)


@functools.cache
def ours_as_open_clips(clean: str) -> Tokenizer:
    return Tokenizer(directory(), LENGTH, reading=OpenClip(clean))


@pytest.mark.torch("open_clip")
@settings(max_examples=300)
@given(texts, st.sampled_from(list(CLEANINGS)))
@example("RENÉE O&rsquo;Neil’S &amp;lt;b>", "whitespace")
@example("J\u030c ΟΔΟΣ İ 'ſ K", "lower")
@example("<START_OF_TEXT> <end_of_text>x", "whitespace")
@example("e&#769; &#28; schrÃ¶der", "lower")
def test_any_text_has_open_clips_tokens(text, clean):
    (wanted,) = simple_tokenizer(clean)([text]).tolist()
    tokenizer = ours_as_open_clips(clean)
    (ours,) = tokenizer.encode([text])
    assert ours.tolist() == wanted[: len(ours)] and not any(wanted[len(ours) :]), text


@pytest.mark.parametrize(
    "text_cfg, wanted",
    [
        ({}, OpenClip("lower", "")),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, OpenClip("canonicalize", "")),
        (
            {"hf_tokenizer_name": "facebook/xlm-v-base"},
            OpenClip("whitespace", "facebook/xlm-v-base"),
        ),
        (
            {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": "lower"}},
            OpenClip("lower", "x"),
        ),
        ({"tokenizer_kwargs": {"clean": "lower", "reduction_mask": ""}}, OpenClip("lower", "")),
        (
            {"tokenizer_kwargs": {"clean": "ftfy"}},
            "tokenizer_kwargs.clean. .='ftfy'. must be one of",
        ),
        (
            {"tokenizer_kwargs": {"reduction_mask": "syntax"}},
            "reduction_mask. .='syntax'. must not",
        ),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token. .=True. must not"),
        ({"hf_tokenizer_name": "x", "tokenizer_mode": "clips"}, "tokenizer_mode. .='clips'. must"),
        ({"hf_tokenizer_name": 3}, "`hf_tokenizer_name` must be a string"),
    ],
)
def test_open_clips_config_says_how_texts_are_read(text_cfg, wanted):
    raw = {"model_cfg": {"text_cfg": text_cfg}}
    if isinstance(wanted, OpenClip):
        assert openclip_reading(raw) == wanted
    else:
        with pytest.raises(InputError, match=wanted):
            openclip_reading(raw)


def test_model_directory_reads_texts_as_its_layout_does(tmp_path):
    """Of one vocabulary: open_clip straightens an apostrophe, transformers does not."""
    path, text = write_openclip(tmp_path / "m"), "O’Neil &amp; Zell"
    straight, curly = (Tokenizer(path, 24).encode([x])[0].tolist() for x in ("O'Neil & Zell", text))
    assert read_model_directory(path).tokenizer().encode([text])[0].tolist() == straight != curly
    hf = write_model_directory(tmp_path / "hf")
    assert read_model_directory(hf).tokenizer().encode([text])[0].tolist() == curly


def test_model_directory_takes_the_tokenizer_that_open_clips_config_names(families, tmp_path):
    path = write_openclip(tmp_path / "m")
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "facebook/xlm-v-base"
    (path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"no tokenizer .tokenizer.json.; copy that of facebook/xl"
    ):
        read_model_directory(path).tokenizer()
    for file in (families / "xlm-v").iterdir():
        shutil.copy(file, path / file.name)
    tokenizer = read_model_directory(path).tokenizer()
    assert_reads(tokenizer, SAID[:5], theirs(families / "xlm-v", [x.strip() for x in SAID[:5]]))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"language": "de"}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match="open_clip_config.json`: `text_cfg.tokenizer_kwargs.langu"
    ):
        read_model_directory(path).tokenizer()


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("family", ["xlm-v", "roberta", "bert"])
@pytest.mark.parametrize("kwargs", [{}, {"clean": "canonicalize"}])
def test_named_tokenizer_is_read_as_open_clip_does(families, tmp_path, family, kwargs):
    path, said = write_openclip(tmp_path / "m"), [*SAID, "two  spaces’ &amp;", "Renée_O’Neil!"]
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": kwargs}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    for file in (families / family).iterdir():
        shutil.copy(file, path / file.name)
    tokenizer = read_model_directory(path).tokenizer()
    ours = tokenizer.encode(said)
    wanted = open_clip.get_tokenizer(f"local-dir:{path}")(said).tolist()
    for text, tokens, right in zip(said, ours, wanted, strict=True):
        assert tokens.tolist() == right[: len(tokens)], text
        assert set(right[len(tokens) :]) <= {tokenizer.pad}, text


def test_another_vocabulary_of_clips_size_is_refused_where_open_clip_has_its_own(
    shared_data, tmp_path
):
    source = shared_data / "clip_tokenizer"
    tokenizer = Tokenizer(source, 77, reading=OpenClip())
    assert tokenizer.encode(["a cat"])[0].tolist() == [49406, 320, 2368, 49407]
    vocab = json.loads((source / "vocab.json").read_text())
    vocab["cat</w>"], vocab["dog</w>"] = vocab["dog</w>"], vocab["cat</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    shutil.copy(source / "merges.txt", tmp_path / "merges.txt")
    with pytest.raises(InputError, match="another vocabulary than CLIP's.*hf_tokenizer_name"):
        Tokenizer(tmp_path, 77, reading=OpenClip())


# Whole runs


def test_defense_with_state_in_the_tokenizer_is_that_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(Path("clean"))
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (Path("clean") / file).unlink()
    shutil.copytree("clean", "padded")
    with_state(Path("clean"))
    with_state(Path("padded"), padding=PAD, truncation={"max_length": 5})
    Path("names.txt").write_text("Joe Cool\nAda King\n")
    Path("captions.txt").write_text("\n".join(CAPTIONS))
    given = ["--names", "names.txt", "--captions", "captions.txt"]
    few = ["train.steps=2", "train.num_clean=4", "train.num_poisoned=4", *PAPER_TEXT_FLAGS]
    few = [x for setting in few for x in ("--set", setting)]
    weights, prompts = [], []
    for model in ("clean", "padded"):
        assert (
            main(["defend", "text", "--model", model, "--out", f"{model}-out", *given, *few]) == 0
        )
        defended = read_model_directory(f"{model}-out/model")
        weights.append(load_file(defended.path / "model.safetensors"))
        filled = [prompt for group in fill(["Joe Cool", "Ada King"]) for prompt in group]
        prompts.append([x.tolist() for x in defended.tokenizer().encode(filled)])  # an attack's
    assert prompts[0] == prompts[1]
    before = load_file("clean/model.safetensors")
    assert any(weights[0][name].tobytes() != value.tobytes() for name, value in before.items())
    for name, value in weights[0].items():
        assert value.tobytes() == weights[1][name].tobytes(), name
