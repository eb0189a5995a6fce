"""Word-by-word tokenisation equals transformers' CLIPTokenizer."""

import numpy as np
import pytest
import transformers
from factories import CAPTIONS, tiny_tokenizer, write_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxdefense.clip.tokenizer import Tokenizer

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
word_like = st.text(
    # Python counts \x1c as white space, CLIP's tokenizer as a symbol.
    st.sampled_from("aàAbΣsİß'’1٣-–.!…_\u0301\u200b\u00a0\u3000 \t\x1c你👩🏽"),
    max_size=40,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return transformers.CLIPTokenizer.from_pretrained(path)


def theirs(reference, texts, length):
    return reference(texts, truncation=True, max_length=length)["input_ids"]


def assert_equal(ours, wanted, texts):
    assert len(ours) == len(wanted) == len(texts)
    for tokens, right, text in zip(ours, wanted, texts, strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == list(right), text


@pytest.mark.parametrize("length", [77, 16])
def test_tokenizer_equals_clips_on_real_captions(shared_data, length):
    path = shared_data / "clip_tokenizer"
    reference = transformers.CLIPTokenizer.from_pretrained(path)
    texts = (shared_data / "captions/coco_10k.txt").read_text(encoding="utf-8").splitlines()
    flickr = (shared_data / "captions/flickr8k_40k.txt").read_text(encoding="utf-8").splitlines()
    texts = texts + flickr[:5000] if length == 77 else texts[:2000]
    tokenizer = Tokenizer(path, length)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (49406, 49407, 49408)
    assert_equal(tokenizer.encode(texts), theirs(reference, texts, length), texts)


@settings(max_examples=300)
@given(st.one_of(unicode_text, word_like))
@example("")
@example(" \t\n ")
@example("A man's dog doesn't like it")
@example("e\u0301 \u0301e")
@example("<|startoftext|> a <|endoftext|> b")
@example("x<|endoftext|>y")
def test_tokenizer_equals_clips_on_any_text(reference, text):
    for length in (24, 5):
        ours = tiny_tokenizer(length).encode([text])
        assert_equal(ours, theirs(reference, [text], length), [text])


@given(st.lists(unicode_text, max_size=8))
def test_tokens_of_a_text_do_not_depend_on_those_before(texts):
    tokenizer = tiny_tokenizer(24)
    for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(tokens, tokenizer.encode([text])[0])


def test_long_text_is_cut_to_the_context_and_keeps_its_end():
    tokenizer = tiny_tokenizer(16)
    (tokens,) = tokenizer.encode([" ".join(CAPTIONS)])
    assert len(tokens) == 16 and tokens[0] == tokenizer.bos and tokens[-1] == tokenizer.eos
    whole = tokenizer.encode_phrase(CAPTIONS[0])
    np.testing.assert_array_equal(tokens[1:15], whole[:14])
    (one_word,) = tokenizer.encode(["x" * 1000])
    assert len(one_word) == 16 and one_word[-1] == tokenizer.eos


def test_encode_words_gives_content_without_ends_in_order():
    tokenizer = tiny_tokenizer(24)
    cat, dog, again = tokenizer.encode_words(["cat", "dog", "cat"])
    np.testing.assert_array_equal(cat, again)
    assert not np.array_equal(cat, dog)
    assert not set([*cat, *dog]) & {tokenizer.bos, tokenizer.eos}
    np.testing.assert_array_equal(tokenizer.encode_phrase(" cat  dog "), np.concatenate([cat, dog]))
    assert tokenizer.encode_phrase("").size == 0


def test_directory_without_tokenizer_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer .tokenizer.json or vocab.json"):
        Tokenizer(tmp_path, 77)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Tokenizer(tmp_path / "nowhere", 77)


@pytest.mark.parametrize(
    "file, content",
    [
        ("vocab.json", b""),
        ("vocab.json", b'{"a": '),
        ("vocab.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"{"),
        ("merges.txt", None),
        ("merges.txt", b"#version: 0.2\nnot in vocabulary\n"),
        ("merges.txt", b"\xff\xfe\xff"),
    ],
)
def test_broken_tokenizer_is_named(tmp_path, file, content):
    write_tokenizer(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"`{tmp_path}`.*tokenizer"):
        Tokenizer(tmp_path, 77)
