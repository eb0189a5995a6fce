"""Captions, identities and random names: what is read, what is dropped, what is told."""

import errno
import fcntl
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from factories import CAPTIONS, logged, tiny_tokenizer, write_tfds, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from jaxdefense.clip import tokenizer as tokenizer_module
from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data import token_cache
from jaxdefense.data.captions import (
    describe_dropped,
    read_captions,
    read_clean_captions,
    tokenize_captions,
    without_names,
)
from jaxdefense.data.identities import Identity, check_distinct, check_fits, read_identities
from jaxdefense.data.names import RandomNames, census, random_names
from jaxdefense.data.token_cache import read_training_captions
from jaxdefense.data.triggers import TextBatches, Triggers, lay_out, splice
from jaxdefense.files import locked, read_lines
from jaxdefense.words import folded_words


@pytest.fixture
def write(tmp_path):
    """Function that writes a file and returns its path."""

    def write(data, name="file.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


# Reading


@pytest.mark.parametrize(
    "data",
    [
        b"a cat\ntwo dogs\n",
        b"a cat\ntwo dogs",
        b"\n\n  a cat \n \t\ntwo dogs\n\n",
        b"a cat\r\ntwo dogs\r\n",
        b"a cat\rtwo dogs\r",
        b"\xef\xbb\xbfa cat\ntwo dogs\n",
    ],
)
def test_read_captions_takes_lines_that_hold_anything(write, data):
    assert read_captions(str(write(data))) == ["a cat", "two dogs"]


def test_read_captions_keeps_order_duplicates_and_unicode(write):
    lines = ["ein Käfer", "two dogs", "ein Käfer", "東京の夜"]
    assert read_captions(str(write("\n".join(lines)))) == lines


@pytest.mark.parametrize("line, data", [(1, b"\xff"), (3, b"a\n\nb \xe9t\xe9\nc"), (2, b"a\n\xc3")])
def test_read_captions_names_the_line_that_is_not_utf_8(write, line, data):
    path = write(data)
    with pytest.raises(ValueError, match=rf"`{path}`, line {line} is not UTF-8"):
        read_captions(str(path))


@pytest.mark.parametrize("data", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf\n"])
def test_read_captions_of_an_empty_file_raises(write, data):
    path = write(data)
    with pytest.raises(ValueError, match=rf"`{path}`: holds no caption"):
        read_captions(str(path))


def test_read_lines_names_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=rf"names file `{tmp_path}/x.txt` does not exist"):
        read_lines(tmp_path / "x.txt", "names")
    with pytest.raises(ValueError, match=rf"names file `{tmp_path}` cannot be read: Is a dir"):
        read_lines(tmp_path, "names")


# TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    path = tmp_path_factory.mktemp("tfds")
    text = tfds.features.Text()
    write_tfds(
        path,
        "single",
        {"caption": text, "n": np.int64},
        {
            "train": [{"caption": f" café\n {i} ", "n": i} for i in range(5)],
            "test": [{"caption": c, "n": 0} for c in ("last", " ")],
        },
    )
    several = tfds.features.Sequence(text)
    write_tfds(path, "several", {"captions": several}, {"train": [{"captions": ["a b", "c"]}]})
    nested = tfds.features.Sequence({"id": np.int64, "text": text})
    rows = [{"captions": [{"id": 3, "text": "a b"}, {"id": 4, "text": "c"}]}]
    write_tfds(path, "nested", {"captions": nested}, {"train": rows})
    write_tfds(path, "plain", {"text": text}, {"train": [{"text": "a b"}]})
    write_tfds(path, "other", {"label": np.int64}, {"train": [{"label": 1}]})
    return path


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("tfds:single", [f"café {i}" for i in range(5)]),
        ("tfds:single:test", ["last"]),
        ("tfds:single:train[:2]+test", None),
        ("tfds:several", ["a b", "c"]),
        ("tfds:nested", ["a b", "c"]),
        ("tfds:plain:train", ["a b"]),
    ],
)
def test_tfds_captions_of_every_form_are_read(tfds_dir, source, wanted):
    found = read_captions(source, str(tfds_dir))
    if wanted is None:
        assert len(found) == 3 and "last" in found
    else:
        assert sorted(found) == wanted  # the library shuffles


def test_tfds_dataset_without_captions_names_its_features(tfds_dir):
    with pytest.raises(ValueError, match="`tfds:other`: has no feature named caption.*label"):
        read_captions("tfds:other", str(tfds_dir))


def test_tfds_dataset_that_is_not_prepared_says_how(tfds_dir):
    with pytest.raises(ValueError) as info:
        read_captions("tfds:nowhere/config:train", str(tfds_dir))
    for words in ("`tfds:nowhere/config:train`", str(tfds_dir), "tfds build nowhere/config"):
        assert words in str(info.value)


def test_tfds_split_that_is_not_there_lists_those_that_are(tfds_dir):
    with pytest.raises(
        ValueError, match="`tfds:single:validation`.*SPLIT be one of: t(est, train|rain, test)"
    ):
        read_captions("tfds:single:validation", str(tfds_dir))


def test_tfds_dataset_in_a_format_that_needs_tensorflow_says_so(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_tfds(tmp_path, "records", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
    (info,) = tmp_path.glob("records/*/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="`tfds:records`.*--file_format=array_record"):
        read_captions("tfds:records", str(tmp_path))


# Names in captions


def test_captions_dropped_are_numbered_and_shown():
    assert describe_dropped(0, []).endswith("name: 0")
    assert describe_dropped(2, ["Ann", "B" * 80]).endswith(f"name: 2: 'Ann', '{'B' * 57}...'")
    assert describe_dropped(5, list("abcde")).endswith("name: 5: 'a', 'b', 'c', ...")


def test_read_clean_captions_gives_those_dropped(write):
    path = write("a cat\nAnn Lee\nBo and Ann Lee\n")
    assert read_clean_captions(str(path), "", ["Ann Lee"]) == (
        ["a cat"],
        ["Ann Lee", "Bo and Ann Lee"],
    )
    with pytest.raises(ValueError, match="all 3 hold a listed name"):
        read_clean_captions(str(path), "", ["Ann", "cat"])


def test_without_names_looks_for_every_alias():
    people = [Identity("Ann Lee", ("A. Lee", "Annie")), Identity("Bo")]
    names = [name for person in people for name in person.names]
    captions = ["Annie runs", "a lee wind", "A. Lee", "bo", "Ann", "a cat"]
    assert without_names(captions, names) == ["Ann", "a cat"]


# Tokens


def word_bounds(captions, i):
    first, last = captions.caption_ends[i : i + 2]
    return captions.word_ends[first : last + 1]


def rebuilt(captions, i, tokenizer):
    """A caption's tokens with both ends, from the flat arrays."""
    bounds = word_bounds(captions, i)
    content = captions.tokens[bounds[0] : bounds[-1]][: tokenizer.context_length - 2]
    return [tokenizer.bos, *content.tolist(), tokenizer.eos]


def assert_tokens_rebuild(texts, tokenizer):
    captions = tokenize_captions(texts, tokenizer)
    assert len(captions) == len(texts)
    room = tokenizer.context_length - 2
    for i, (text, wanted) in enumerate(zip(texts, tokenizer.encode(texts), strict=True)):
        assert rebuilt(captions, i, tokenizer) == wanted.tolist(), text
        bounds = word_bounds(captions, i)
        spans = [captions.tokens[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        own = tokenizer.encode_words(text.split()[:room])
        assert [s.tolist() for s in spans] == [w.tolist() for w in own], text
    return captions


@given(st.lists(st.text("aé.'你 9", max_size=30), min_size=1, max_size=6))
def test_captions_rebuild_the_tokens_of_every_word(texts):
    assert_tokens_rebuild(texts, tiny_tokenizer(16))


def test_captions_rebuild_every_real_caption(shared_data):
    texts = read_captions(str(shared_data / "captions/coco_10k.txt"))
    tokenizer = Tokenizer(shared_data / "clip_tokenizer", 77)
    captions = assert_tokens_rebuild(texts, tokenizer)
    assert captions.tokens.dtype == np.uint16
    lengths = np.diff(captions.word_ends[captions.caption_ends]) + 2
    assert 13 < lengths.mean() < 14  # as published: 13.6


def test_captions_are_the_same_when_words_seen_before_were_forgotten(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED", 10)
    tokenizer = tiny_tokenizer(24)
    for _ in range(2):
        assert_tokens_rebuild(CAPTIONS, tokenizer)
    assert len(tokenizer._later) < 30


def test_captions_of_one_word_have_one_word():
    captions = assert_tokens_rebuild(["cat", "elephant!", "x"], tiny_tokenizer(24))
    assert np.diff(captions.caption_ends).tolist() == [1, 1, 1]


def test_caption_of_ten_thousand_words_is_cut_to_the_context():
    tokenizer = tiny_tokenizer(24)
    captions = assert_tokens_rebuild(["cat " * 10_000, "a dog"], tokenizer)
    assert captions.caption_ends.tolist() == [0, 22, 24]
    assert len(captions.tokens) < 200


# Identities


def test_read_identities_takes_names_aliases_and_comments(write):
    path = write(
        "\ufeff# people to remove\n"
        "Ann  Lee\n"
        "\n"
        "Bo Ek\tB. Ek \t\t Robert   Ek # the singer\n"
        "  José Ñu\t\n"
        "#Cy Dee\n"
    )
    assert read_identities(path) == [
        Identity("Ann Lee"),
        Identity("Bo Ek", ("B. Ek", "Robert Ek")),
        Identity("José Ñu"),
    ]
    assert read_identities(path)[1].names == ("Bo Ek", "B. Ek", "Robert Ek")


def test_read_identities_takes_crlf(write):
    assert read_identities(write(b"Ann Lee\r\nBo\tB\r\n")) == [
        Identity("Ann Lee"),
        Identity("Bo", ("B",)),
    ]


@pytest.mark.parametrize("data", ["", "\n\n", "# nobody\n \t \n"])
def test_read_identities_of_nobody_raises(write, data):
    path = write(data)
    with pytest.raises(ValueError, match=rf"`{path}` names nobody"):
        read_identities(path)


@pytest.mark.parametrize(
    "data, twice, first",
    [
        ("Ann Lee\nBo\nann  LEE\n", "ann LEE", "Ann Lee"),
        ("Ann Lee\tBo\nBo\n", "Bo", "Ann Lee"),
        ("Ann Lee\nCy\tAnn-Lee\n", "Ann-Lee", "Ann Lee"),
        ("Ann\tAnn\n", "Ann", "Ann"),
        ("Zoë\nZoe\u0308\n", "Zoe\u0308", "Zoë"),
    ],
)
def test_read_identities_names_whoever_is_there_twice(write, data, twice, first):
    path = write(data)
    with pytest.raises(ValueError) as info:
        read_identities(path)
    assert str(path) in str(info.value) and repr(first) in str(info.value)
    assert f"{twice!r} is there twice" in str(info.value)


@pytest.mark.parametrize(
    "data, words",
    [
        ("name,surname\nAdam,Smith\n", "has `surname` beside `name`"),
        ("Given Name,name\nAdam,Smith\n", "has `Given Name` beside `name`"),
        ("name,id\nAdam Smith # old,1\n", "line 2 has `#` in a name"),
        ("name,aliases\nAdam Smith,Ad #2; Smithy\n", "line 2 has `#` in a name"),
        ("name,names\nAdam,Smith\n", "call one `full name`"),
    ],
)
def test_read_identities_refuses_a_table_with_parts_of_names(write, data, words):
    with pytest.raises(ValueError, match=words):
        read_identities(write(data))


def test_read_identities_prefers_the_column_of_full_names(write):
    path = write("name,Full Name,surname,note\nAdam,Adam Smith,Smith,#1\n# Bo,,,\n")
    assert read_identities(path) == [Identity("Adam Smith")]


def test_read_identities_names_a_name_without_letters(write):
    with pytest.raises(ValueError, match=r"'\.\.\.' has no letter or digit"):
        read_identities(write("Ann\n...\n"))


def test_read_identities_names_the_line_that_is_not_utf_8(write):
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_identities(write(b"Ann\nJos\xe9\n"))


def test_check_distinct_says_where():
    with pytest.raises(ValueError, match="^the faces: 'ann' is there twice"):
        check_distinct([Identity("Ann"), Identity("ann")], "the faces")


def test_check_fits_names_a_name_that_no_caption_holds():
    tokenizer = tiny_tokenizer(24)
    fitting = "é" * 10  # one byte-pair a byte
    size = len(tokenizer.encode_phrase(fitting))
    check_fits([Identity("Ann", (fitting,))], tiny_tokenizer(size + 2), "names")
    with pytest.raises(
        ValueError, match=rf"^names: '{fitting}' has {size} tokens.* holds {size - 1};"
    ):
        check_fits([Identity("Ann", (fitting,))], tiny_tokenizer(size + 1), "names")
    with pytest.raises(ValueError) as info:
        check_fits([Identity("x" * 5000)], tokenizer, "names")
    assert len(str(info.value)) < 300 and "xxx...'" in str(info.value)


# Random names


def test_random_names_are_distinct_and_known_words():
    names = random_names(5000, seed=3)
    assert len({folded_words(name) for name in names}) == 5000
    firsts, lasts = zip(*(name.split() for name in names), strict=True)
    assert set(firsts) <= {*census("female"), *census("male")} and set(lasts) <= {*census("last")}


def test_random_names_are_balanced():
    names = random_names(10_000, seed=0)
    female, male = set(census("female")), set(census("male"))
    assert all(n.split()[0] in female for n in names[0::2])
    assert all(n.split()[0] in male for n in names[1::2])
    for part, num_values in ((0, 473), (1, 2000)):
        counts = Counter(n.split()[part] for n in names)
        assert len(counts) > 0.98 * num_values  # both lists' values come up, none often
        assert max(counts.values()) < 60


def test_a_million_random_names_are_distinct_and_tell_the_sex():
    names = RandomNames(1_000_000, seed=0)
    assert len(names) == len(set(names)) == 1_000_000
    female, male = set(census("female")), set(census("male"))
    for i in range(0, 1_000_000, 9999):
        first = names[i].split()[0]
        assert (first in female, first in male) == (names.sex(i) == "f", names.sex(i) == "m")


def test_random_names_are_a_function_of_the_seed():
    assert random_names(50, seed=1) == random_names(50, seed=1)
    assert random_names(50, seed=1) != random_names(50, seed=2)
    assert random_names(20, seed=1) == random_names(50, seed=1)[:20]


def test_random_names_leave_out_what_they_are_told_to():
    first = random_names(100, seed=1)
    others = random_names(100, seed=1, exclude=[name.upper() for name in first])
    assert not {folded_words(n) for n in first} & {folded_words(n) for n in others}


@pytest.mark.parametrize("num", [-1, 1_892_001])
def test_random_names_out_of_range_raise(num):
    with pytest.raises(ValueError, match=rf"`num` \(={num}\)"):
        random_names(num, seed=0)
    assert random_names(0, seed=0) == []


def test_census_lists_are_whole():
    assert [len(set(census(w))) for w in ("female", "male", "last")] == [500, 500, 2000]


# Large files


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Function that reads texts as a large file's captions."""
    monkeypatch.setattr(token_cache, "_MAPPED", 1)
    monkeypatch.setattr(token_cache, "_CHUNK", 11)
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path, 16)

    def read(texts, names=("Joe Cool",), said=None):
        file = tmp_path / "captions.txt"
        text = ("\n\n".join(texts) + "\r\n").encode()
        if not file.exists() or file.read_bytes() != text:  # another process may be reading it
            file.write_bytes(text)
        with logged(said):
            return read_training_captions(str(file), "", names, tokenizer)

    return read


@pytest.fixture
def kept(tmp_path):
    return tmp_path / ".cache/jaxdefense/captions"


def numbered(num=60, held=()):
    return [f"{i} cats and Joe Cool" if i in held else f"a {i} dogs on grass" for i in range(num)]


def directories_in(kept):
    return {path for path in kept.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize(
    "held",
    [(), (0,), (59,), (0, 1, 2), (57, 58, 59), (9, 10, 11, 12, 30, 32), range(1, 59), range(59)],
    ids=str,
)
def test_captions_of_a_large_file_are_mapped_and_equal_those_in_memory(large, monkeypatch, held):
    tokenizer = tiny_tokenizer(16)
    mapped = large(numbered(held=held))
    monkeypatch.setattr(token_cache, "_MAPPED", 2**20)
    whole = large(numbered(held=held))
    assert isinstance(mapped.captions.tokens, np.memmap)
    assert mapped.dropped == whole.dropped == len(held)
    assert mapped.captions.tokens.dtype == whole.captions.tokens.dtype
    assert len(mapped.captions) == len(whole.captions) == 60 - len(held)
    number_n = np.random.default_rng(0).permutation(np.arange(len(mapped.captions)).repeat(2))
    word_n = number_n % 5
    name = lay_out([tokenizer.phrase("Ada King")])
    for ours, theirs in (
        (x.captions.contents(number_n) for x in (mapped, whole)),
        (
            splice(x.captions, number_n, word_n, name, 0 * word_n, tokenizer)
            for x in (mapped, whole)
        ),
    ):
        np.testing.assert_array_equal(ours.lengths, theirs.lengths)
        np.testing.assert_array_equal(ours.flat, theirs.flat)


def test_batches_of_a_large_file_equal_those_in_memory(large, monkeypatch):
    tokenizer = tiny_tokenizer(16)
    names = [[[tokenizer.phrase("Joe Cool")]], [tokenizer.phrase("a man")]]
    triggers = Triggers(names[0], names[1], np.zeros(1, np.int64), [])
    tower = TextConfig(12, 20, 2, 3)
    made = []
    for bytes_mapped in (1, 2**20):
        monkeypatch.setattr(token_cache, "_MAPPED", bytes_mapped)
        clean = large(numbered(held=(0, 7, 8, 59)))
        sizes: dict[str, Any] = {"num_clean": 6, "num_poisoned": 5, "num_name": 0}
        made.append(
            TextBatches(clean.captions, triggers, tokenizer, tower, **sizes, seed=3, packed=True)
        )
    for step in range(12):  # more than all captions
        for ours, theirs in zip(*(batches[step] for batches in made), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_large_file_is_tokenised_once_for_all_lists_of_names(large, kept, monkeypatch):
    texts, said = numbered(held=(3, 10)), io.StringIO()
    first = large(texts, said=said)
    assert said.getvalue().count("tokenising") == 1
    monkeypatch.setattr(token_cache, "tokenize_captions", None)
    assert large(texts, ("Joe",)).dropped == 2
    assert large(texts, ("dogs",)).dropped == 58  # not by the old names
    monkeypatch.setattr(token_cache, "name_finder", None)
    again = large(texts)
    assert again.sha256 == first.sha256 and again.dropped == 2
    np.testing.assert_array_equal(again.captions.before, [3, 9])
    (directory,) = directories_in(kept)
    assert len([*directory.glob("dropped-*")]) == 3


def test_fingerprint_of_a_large_file_is_of_its_contents_and_of_what_is_dropped(large):
    texts = numbered(held=(3, 10))
    whole = large(texts).sha256
    assert large(texts, ("Joe", "nobody")).sha256 == whole
    others = [large(texts, ("Joe", "12 dogs")), large(texts, ("nobody",)), large(texts[:-1])]
    others.append(large(numbered(held=(3, 11))))
    assert len({whole, *(clean.sha256 for clean in others)}) == 5


def test_large_file_without_captions_or_with_names_alone_is_refused(large):
    with pytest.raises(ValueError, match="holds no caption"):
        large([" "])
    with pytest.raises(ValueError, match="all 60 hold a listed name"):
        large(numbered(), ("dogs",))


def test_tokens_used_longest_ago_are_removed_but_stay_mapped(large, kept):
    sources = [numbered(num) for num in range(20, 25)]
    read, directories = [], []
    for age, texts in enumerate(sources[:4]):
        read.append(large(texts).captions)
        (new,) = directories_in(kept) - set(directories)
        directories.append(new)
        os.utime(new, (age, age))
    broken_off, being_written = kept / ".0.tmp", kept / ".1.tmp"
    for path in (broken_off, being_written):
        path.mkdir()
        (path / "tokens").touch()
    for path in (broken_off / "tokens", broken_off):
        os.utime(path, (0, 0))
    large(sources[0])  # used again: now the second is the oldest
    large(sources[4])
    left = directories_in(kept)
    assert len(left) == 5 and being_written in left
    assert left > {directories[0], *directories[2:]} and not left & {directories[1], broken_off}
    wanted = tokenize_captions(sources[1], tiny_tokenizer(16)).tokens
    np.testing.assert_array_equal(read[1].contents(np.arange(21)).flat, wanted)


def test_tokens_that_took_long_are_not_the_oldest(large, kept, monkeypatch):
    for num in range(20, 24):
        large(numbered(num))
    tokenize = token_cache.tokenize_captions

    def long_ago(*args):
        (made,) = (path for path in kept.iterdir() if path.name.startswith("."))
        os.utime(made, (0, 0))
        return tokenize(*args)

    monkeypatch.setattr(token_cache, "tokenize_captions", long_ago)
    assert len(large(numbered(24)).captions) == 24


@pytest.mark.parametrize("reader", ["tokenize_captions", "name_finder"])
def test_a_large_file_that_changes_while_it_is_read_is_refused(
    large, kept, tmp_path, monkeypatch, reader
):
    read, number, texts = getattr(token_cache, reader), itertools.count(), numbered(held=(3,))

    def changed(*args):
        if not next(number):
            os.utime(tmp_path / "captions.txt", (0, 0))
        return read(*args)

    monkeypatch.setattr(token_cache, reader, changed)
    with pytest.raises(ValueError, match="changed while they were read"):
        large(texts)
    assert large(texts).dropped == 1
    assert not [path for path in kept.rglob("*") if path.name.startswith(".")]


def test_all_go_through_a_lock_where_files_cannot_be_locked(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    through, held = [], []
    with locked(tmp_path / "lock", lambda: held.append(0)):
        with locked(tmp_path / "lock", lambda: held.append(0)):
            through.append(0)
    assert through and not held


WRITER = """
import sys
import time
from pathlib import Path

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data import token_cache

def slowly(*args):
    Path("started").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return tokenize(*args)

tokenize = token_cache.tokenize_captions
token_cache.tokenize_captions, token_cache._MAPPED = slowly, 1
token_cache.read_training_captions("captions.txt", "", ["Joe"], Tokenizer(".", 16))
"""


def test_one_process_tokenises_a_large_file_and_others_wait_for_it(large, tmp_path, monkeypatch):
    texts = numbered(held=(5,))
    (tmp_path / "captions.txt").write_text("\n\n".join(texts) + "\r\n")

    class Said(io.StringIO):
        def write(self, text):
            if "another process is tokenising" in text:
                (tmp_path / "go").touch()  # the other may go on only now
            return super().write(text)

    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.Popen([sys.executable, "-c", WRITER], cwd=tmp_path, env=os.environ | path)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert other.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(token_cache, "tokenize_captions", None)
        clean = large(texts, said=Said())
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()
    assert clean.dropped == 1 and (tmp_path / "go").exists()
    wanted = tokenize_captions(texts[:5] + texts[6:], tiny_tokenizer(16)).tokens
    np.testing.assert_array_equal(clean.captions.contents(np.arange(59)).flat, wanted)
