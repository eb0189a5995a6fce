"""Files of lines: what is read of them, what is removed and said, what is refused by name."""

import gzip
import io
import logging
import lzma
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pytest
from factories import CAPTIONS

from jaxdefense.data.captions import read_captions
from jaxdefense.data.forms import Form, structure
from jaxdefense.data.identities import Identity, describe_listed, read_identities
from jaxdefense.data.identities import read_names as candidate_names
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


PARQUET = b"PAR1\x15\x04\x15"
TEXT = "Adam Smith\nEve Jones\nZoë Kay\n"


@pytest.mark.parametrize(
    "data, words",
    [
        (lzma.compress(TEXT.encode()), ["is xz", "xz -dc"]),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], ["cannot be read", "Truncated"]),
        (b"\x28\xb5\x2f\xfd\x04X", ["cannot be read"]),
        (packed(zipped), ["zip archive"]),
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


@pytest.mark.parametrize("data, word", [(packed(tarred), "a tar"), (PARQUET, "Parquet")])
def test_lists_of_names_in_shards_are_refused_by_name(refused, data, word):
    assert f"is {word}" in refused(data, read_names)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_packed_lines_are_read_whatever_the_file_is_called(tmp_path, codec):
    path = tmp_path / "names"
    half = pa.compress(TEXT.encode(), codec, asbytes=True)
    path.write_bytes(half + half)  # as parallel programs pack
    assert read_names(path) == TEXT.splitlines() * 2
    assert read_captions(str(path)) == TEXT.splitlines() * 2


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
    assert structure(head) == Form("text")


def test_real_captions_are_no_table(shared_data):
    for path in (shared_data / "captions").glob("*.txt"):
        texts = read_captions(str(path))
        for start in range(0, len(texts), 50):
            assert structure(texts[start : start + 50]) == Form("text")


# Names


@pytest.mark.parametrize(
    "data, words",
    [
        ("First Name,Email\nAnn,ann@x.org\n", ["header, 'First Name,Email'", "column `name`"]),
        ("Ann Lee,ann@x.org\n", ["'Ann Lee,ann@x.org' is no name, it holds `,`"]),
        ("Ann Lee\nAznar, José María\n", ["line 2", "`,`", "the first name first"]),
        ("Ann;Lee\n", ["`;`"]),
        ('"Ann Lee"\n', ['`"`']),
        ("Ann Lee | Bo\n", ["`|`"]),
        ('{"name": "Ann Lee"}\n', ["{"]),
        ('["Ann Lee"]\n', ["["]),
        ("Ann Lee\tann@x.org\n", ["'ann@x.org'", "`@`", "no e-mail"]),
        ("Ann Lee\tAnnie\t1980-02-01\n", ["'1980-02-01' is a number"]),
        ("7\tAnn Lee\n", ["'7' is a number"]),
        ("https://x.org/Ann\n", ["`://`"]),
        ("Name\nAnn Lee\tAnnie\n", ["line 2 has a tab", "without header"]),
        ("name,name\nAnn,Bo\n", ["`name`, `name`", "which column"]),
        ("name\tage\nAnn Lee\n", ["line 2 has 1 fields, the first row 2"]),
        ("name,age\nAnn Lee,7\n,8\n", ["line 3 has no `name`"]),
        ('name,age\n"Lee, Ann",7\n', ["line 2", "'Lee, Ann'", "the first name first"]),
        ('name,age\n"Ann Lee,7\n', ["line 2 is no row", "quotation mark"]),
        ("name\n", ["names nobody"]),
        ("# the list\n\nfirst_name\nAnn\n", ["header, 'first_name'"]),
        ("Person\nAnn\n", ["header, 'Person'"]),
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


@pytest.mark.parametrize(
    "data, names, rest",
    [
        ("name\nAnn Lee\n\nBo Ek\n", ["Ann Lee", "Bo Ek"], ""),
        (
            "Name,E-Mail,Aliases\nAnn Lee,a@x.org,\n# gone\n\u200bBo  Ek,b@x.org,Bob | Robert Ek\n",
            ["Ann Lee", "Bo Ek/Bob/Robert Ek"],
            "`E-Mail`",
        ),
        ("# the list\nid;FULL_NAME;aka\r\n1;Ann Lee;A. Lee\r\n", ["Ann Lee/A. Lee"], "`id`"),
        ('email\tname\nx@y\t"Ann ""Bo"" Lee"\n', None, "`email`"),
        ('"name","age"\n"Ann\nLee","7"\n', ["Ann Lee"], "`age`"),
    ],
)
def test_names_are_read_from_the_column_name_of_a_table(tmp_path, caplog, data, names, rest):
    caplog.set_level(logging.INFO, "jaxdefense")
    path = tmp_path / "names.csv"
    path.write_text(data, newline="")
    if names is None:
        with pytest.raises(InputError, match='line 2: .* is no name, it holds `"`'):
            read_identities(path)
        return
    assert ["/".join(person.names) for person in read_identities(path)] == names
    if not data.startswith("#"):
        assert candidate_names(path, "candidates") == [x.partition("/")[0] for x in names]
    said = " ".join(caplog.messages)
    assert "names are read from `" in said
    assert ("1 invisible characters removed" in said) == ("\u200b" in data)
    assert f", and not from {rest}" in said if rest else "not from" not in said


def test_list_is_told_as_understood():
    people = [Identity("Ann Lee"), Identity("Bo Ek", ("B. Ek", "Bob"))]
    assert describe_listed(people) == "2 people: Ann Lee, Bo Ek (also B. Ek, Bob)"
    many = [Identity(f"P {i} {'x' * 99}") for i in range(2000)]
    told = describe_listed(many)
    assert told.startswith("2000 people: P 0 xx") and told.endswith("... and 1990 more")
    assert len(told) < 700
