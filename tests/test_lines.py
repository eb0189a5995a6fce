"""Files of lines: what is read of them, what is removed and said, what is refused by name."""

import gzip
import io
import json
import tarfile
import zipfile
import zlib

import pytest
from factories import CAPTIONS

from jaxdefense.data.captions import read_captions, structure
from jaxdefense.data.identities import Identity, describe_listed, read_identities
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines


@pytest.fixture
def refused(tmp_path):
    """Function that writes a file, has it read, and gives the one line by which it is refused."""

    def refused(data, read):
        path = tmp_path / "file"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(InputError) as info:
            read(str(path))
        message = str(info.value)
        assert str(path) in message and "\n" not in message and message.endswith(".")
        return message

    return refused


def read_names(path):
    return read_lines(path, "names")


def packed(pack):
    out = io.BytesIO()
    pack(out)
    return out.getvalue()


def zipped(out):
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("names.txt", "Ann Lee\n")


def tarred(out):
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("names.txt"))


TEXT = "Adam Smith\nEve Jones\nZoë Kay\n"


@pytest.mark.parametrize(
    "data, words",
    [
        (gzip.compress(TEXT.encode()), ["is gzip", "gunzip -c"]),
        (b"\x28\xb5\x2f\xfd\x04X", ["is Zstandard", "zstd -dc"]),
        (packed(zipped), ["zip archive"]),
        (packed(tarred), ["tar archive"]),
        (b"PAR1\x15\x04\x15", ["is Parquet", "column"]),
        (b"%PDF-1.7\n", ["is PDF"]),
        (b"{\\rtf1\\ansi Ann}", ["is rich text"]),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ["is a photo"]),
        (TEXT.encode("utf-16"), ["is UTF-16,", "iconv -f UTF-16 "]),
        (TEXT.encode("utf-32"), ["is UTF-32,", "iconv -f UTF-32 "]),
        (TEXT.encode("utf-16-le"), ["is UTF-16LE", "iconv -f UTF-16LE"]),
        (TEXT.encode("utf-16-be"), ["is UTF-16BE", "iconv -f UTF-16BE"]),
        (TEXT.encode("utf-32-le"), ["is UTF-32LE"]),
        (TEXT.encode("utf-32-be"), ["is UTF-32BE"]),
        (b"\x08\x00\x12\x34" + zlib.compress(b"x" * 99), ["zero bytes"]),
        (b"Ann\n" * 2000 + b"B\0o\n", ["line 2001", "zero bytes"]),
        (TEXT.encode("latin-1"), ["line 3 is not UTF-8"]),
    ],
    # Archives hold the time: every worker must have the same names of tests.
    ids=lambda x: x[0] if isinstance(x, list) else "file",
)
def test_files_that_are_no_text_are_refused_by_name(refused, data, words):
    for read in (read_names, read_captions):
        message = refused(data, read)
        assert all(word in message for word in words), message


def test_text_that_begins_like_another_file_is_read(tmp_path):
    for text in ("PAR1S at night", "BZh for two", "PK and Bo", "RIFF raff", "%PDF is no name"):
        (tmp_path / "x").write_text(text)
        assert read_names(tmp_path / "x") == [text]


def test_invisible_characters_are_removed_and_said_once(tmp_path, caplog):
    path = tmp_path / "names.txt"
    one, other = "\ufeffAdam Smith\r\n", "\ufeffEve Jones\r\nCarl\u200b Cole\r\nDana Dove\u200f\r\n"
    path.write_text(one + other + "Pe\u00adter Page\x07\n", newline="")
    names = [person.name for person in read_identities(path)]
    assert names == ["Adam Smith", "Eve Jones", "Carl Cole", "Dana Dove", "Peter Page"]
    (said,) = caplog.messages
    assert said == f"names file `{path}`: 5 invisible characters removed, the first in line 2"
    path.write_text("\ufeffAnn Lee\n")  # a mark at the beginning is no news
    assert read_names(path) == ["Ann Lee"]
    assert caplog.messages == [said]


# Captions


COCO = {"info": {"year": 2014}, "annotations": [{"image_id": 1, "id": 2, "caption": "a cat"}]}
ROWS = [{"caption": "a cat, asleep", "url": "x"}, {"caption": "a dog", "url": "y"}]


@pytest.mark.parametrize(
    "data, kind",
    [
        (json.dumps(COCO), "JSON"),
        (json.dumps(COCO, indent=2), "JSON"),
        (json.dumps(ROWS), "JSON"),
        (json.dumps(ROWS, indent=1), "JSON"),
        (json.dumps(["a cat", "a dog"]), "JSON"),
        ("\n".join(map(json.dumps, ROWS)), "JSON Lines"),
        (json.dumps(ROWS[0]), "JSON"),
        ("image,caption\n1.jpg,A cat , asleep .\n2.jpg,A dog\n", "a table (CSV)"),
        ('"url","caption"\n"x","a cat, asleep"\n', "a table (CSV)"),
        ("image_name| comment_number| comment\n1.jpg| 0| A cat\n", "a table (CSV)"),
        ("uid,caption\n12,a cat\n13,a dog\n", "a table (CSV)"),
        ("url\tcaption\nx\ta cat\n", "a table (tab-separated)"),
        ("1.jpg#0\tA cat\n1.jpg#1\tA feline, asleep\n2.jpg#0\tA dog\n", "a table (tab-separated)"),
    ],
)
def test_captions_in_other_formats_are_refused_by_name(refused, data, kind):
    message = refused(data, read_captions)
    assert f"is {kind}, " in message and "one caption a line" in message


@pytest.mark.parametrize(
    "head",
    [
        CAPTIONS,
        ['"A cat," he said', '"A dog"', "'no'"],
        ["a cat, asleep", "a dog, awake", "a horse, running"],
        ["[vintage] a cat", "[1] a dog"],
        ["[1]", "{a} cat"],
        ["{curly} cat", "a; b"],
        ["caption", "a cat"],
        ["Title: a text, an image", "a cat, a dog"],
        ["a red text, an old image"],
        ["12", "3.5"],
        ["a | b", "c | d"],
        ["one\ttab"],
        [],
    ],
)
def test_ordinary_captions_are_no_table(head):
    assert structure(head) == ""


def test_real_captions_are_no_table(shared_data):
    for path in (shared_data / "captions").glob("*.txt"):
        texts = read_captions(str(path))
        for start in range(0, len(texts), 50):
            assert structure(texts[start : start + 50]) == ""


def test_large_captions_in_another_format_are_refused(tmp_path, monkeypatch):
    from factories import write_tokenizer

    from jaxdefense.clip.tokenizer import Tokenizer
    from jaxdefense.data import token_cache

    monkeypatch.setattr(token_cache, "_MAPPED", 1)
    write_tokenizer(tmp_path)
    path = tmp_path / "captions.txt"
    path.write_text("url\tcaption\nx\ta cat\n")
    with pytest.raises(InputError, match="is a table"):
        token_cache.read_training_captions(str(path), "", [], Tokenizer(tmp_path, 16))


# Names


@pytest.mark.parametrize(
    "data, words",
    [
        ("Name,Email\nAnn Lee,ann@x.org\n", ["header, 'Name,Email'"]),
        ("Ann Lee,ann@x.org\n", ["'Ann Lee,ann@x.org' is no name, it holds `,`"]),
        ("Ann Lee\nAznar, José María\n", ["`,`", "the first name first"]),
        ("Ann;Lee\n", ["`;`"]),
        ('"Ann Lee"\n', ['`"`']),
        ("Ann Lee | Bo\n", ["`|`"]),
        ('{"name": "Ann Lee"}\n', ["{"]),
        ('["Ann Lee"]\n', ["["]),
        ("Ann Lee\tann@x.org\n", ["'ann@x.org'", "`@`", "no e-mail"]),
        ("Ann Lee\tAnnie\t1980-02-01\n", ["'1980-02-01' is a number"]),
        ("7\tAnn Lee\n", ["'7' is a number"]),
        ("https://x.org/Ann\n", ["`://`"]),
        ("Name\tEmail\nAnn Lee\tAnnie\n", ["header, 'Name\\tEmail'", "no other columns"]),
        ("# the list\n\nfirst_name\nAnn\n", ["header, 'first_name'"]),
        ("Person\nAnn\n", ["header, 'Person'"]),
        ("id\tname\n1\tAnn\n", ["header, 'id\\tname'"]),
        ("Jose Maria\nBo\nJosé María\n", ["'Jose Maria'", "'José María'", "twice"]),
    ],
)
def test_names_files_of_other_formats_are_refused(refused, data, words):
    message = refused(data, read_identities)
    assert all(word in message for word in words), message


def test_names_of_one_person_may_be_spelled_twice(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("José María Gil\tJose Maria Gil\nAnn Name\tR2 D2\nAn Id\nDr. (Bo) Ek # a\n")
    assert [person.names for person in read_identities(path)] == [
        ("José María Gil", "Jose Maria Gil"),
        ("Ann Name", "R2 D2"),
        ("An Id",),
        ("Dr. (Bo) Ek",),
    ]


def test_list_is_told_as_understood():
    people = [Identity("Ann Lee"), Identity("Bo Ek", ("B. Ek", "Bob"))]
    assert describe_listed(people) == "2 people: Ann Lee, Bo Ek (also B. Ek, Bob)"
    many = [Identity(f"P {i} {'x' * 99}") for i in range(2000)]
    told = describe_listed(many)
    assert told.startswith("2000 people: P 0 xx") and told.endswith("... and 1990 more")
    assert len(told) < 700
