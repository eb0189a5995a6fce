"""Captions and photos in tables, JSON, Parquet and shards: what is read, what is refused."""

import csv
import gzip
import io
import json
import logging
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import tiny_tokenizer, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_sources import png, write_tar

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data import parquet_images, token_cache
from jaxdefense.data.captions import CaptionFiles, read_captions, tokenize_captions
from jaxdefense.data.pairs import read_pairs
from jaxdefense.data.sources import describe_images, read_images
from jaxdefense.data.token_cache import read_training_captions
from jaxdefense.errors import InputError

TEXTS = ['a cat, "asleep"', "two\tdogs", "a ca\u0301fe; at night", '"no" | yes', "naïve 写真"]
COCO = {
    "images": [{"id": 1, "file_name": "1.jpg"}],
    "annotations": [{"image_id": 1, "id": i, "caption": text} for i, text in enumerate(TEXTS)],
}


def clean(text):
    return " ".join(text.split())


def table(rows, **options):
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


def parquet(rows=2, /, **columns):
    """Write a table in groups of rows."""
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=rows)
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    """Function that writes a file and returns its path."""

    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return write


def refused(read, *args):
    with pytest.raises(InputError) as info:
        read(*args)
    message = str(info.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Captions

ROWS = [{"url": f"http://x/{i}", "TEXT": text, "n": i} for i, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "coco.json": json.dumps(COCO),
    "coco_indented.txt": json.dumps(COCO, indent=2),
    "rows.json": json.dumps(ROWS),
    "list.json": json.dumps(TEXTS),
    "list_on_lines.txt": json.dumps(TEXTS).replace('", "', '",\n"'),
    "photos.json": json.dumps({f"{i}.jpg": [text] for i, text in enumerate(TEXTS)}),
    "rows.jsonl": LINES,
    "really_lines.json": LINES,
    "lines_by_content.txt": LINES.replace("\n", "\r\n\n"),
    "strings.ndjson": "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in TEXTS),
    "lists.jsonl": json.dumps({"captions": TEXTS[:2]}) + "\n" + json.dumps({"captions": TEXTS[2:]}),
    "comma.csv": table([["url", "caption"], *([i, text] for i, text in enumerate(TEXTS))]),
    "semicolon.csv": table([["caption", "id"], *([x, 1] for x in TEXTS)], delimiter=";"),
    "by_content.txt": "\ufeff" + table([["image", "caption"], *([1, text] for text in TEXTS)]),
    "tab.tsv": table(
        [["caption", "url"], *([clean(x), 1] for x in TEXTS)], delimiter="\t", lineterminator="\n"
    ),
    "rows.parquet": parquet(url=list("abcde"), TEXT=TEXTS),
    "binary.parquet": parquet(caption=[text.encode() for text in TEXTS]),
    "lists.parquet": parquet(captions=[TEXTS[:3], None, TEXTS[3:]]),
    "no_suffix": parquet(key=list("abcde"), text=TEXTS),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.jsonl.zst": pa.compress(LINES.encode(), "zstd", asbytes=True),
    "comma.csv.gz": gzip.compress(
        table([["sentence", "split"], *([text, "train"] for text in TEXTS)]).encode()
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_captions_of_every_form_are_the_same(write, name):
    assert read_captions(write(name, FILES[name])) == list(map(clean, TEXTS))


def test_captions_of_shards_are_their_text_members(tmp_path):
    for shard in range(3):
        members = {}
        for i in range(2):
            members |= {f"{i}.jpg": png(i), f"{i}.txt": f"{shard} {i}\n".encode(), f"{i}.json": b""}
        write_tar(tmp_path / f"s-{shard:02}.tar", members | {"._x.txt": b"no"})
    wanted = ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]
    assert read_captions(f"{tmp_path}/s-{{00..02}}.tar") == wanted
    assert read_captions(f"{tmp_path}/s-*.tar") == wanted
    assert read_captions(f"{tmp_path}/s-0[12].tar") == wanted[2:]
    write_tar(tmp_path / "y.tar", {"1.caption": b"a cat", "1.txt": b"no"})
    assert read_captions(f"{tmp_path}/y.tar::CAPTION") == ["a cat"]
    message = refused(read_captions, f"{tmp_path}/y.tar::text")
    assert "`.caption`, `.txt`" in message and "`FILE::SUFFIX`" in message


def test_captions_of_shards_are_those_of_a_photo_as_webdataset_has_it(tmp_path, caplog):
    members = {"LICENSE.txt": b"no", "1.jpg": b"", "1.ocr.txt": b"no", "1.TXT": b"yes"}
    path = str(write_tar(tmp_path / "x.tar", members))
    assert read_captions(path) == ["yes"]
    assert "1 .txt files belong to no photo (first `LICENSE.txt`)" in caplog.text
    write_tar(tmp_path / "x.tar", {"1.txt": b"a", "2.jpg": b""})
    assert "belong to no photo (first `1.txt`), and none does" in refused(read_captions, path)


@pytest.mark.parametrize(
    "name, what",
    [
        ("coco.json", "JSON, COCO's annotations"),
        ("photos.json", "JSON, captions by photo"),
        ("list.json", "JSON, strings"),
        ("strings.ndjson", "JSON Lines, strings"),
    ],
)
def test_what_is_read_without_columns_is_said_and_no_column_is_taken(write, name, what, caplog):
    caplog.set_level(logging.INFO, "jaxdefense")
    path = write(name, FILES[name])
    read_captions(path)
    assert f"captions `{path}`: read as {what}" in caplog.messages
    assert "no column `caption`; name no column" in refused(read_captions, f"{path}::caption")


def test_the_suffix_that_is_read_of_a_tar_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "jaxdefense")
    path = write_tar(tmp_path / "x.tar", {"1.txt": b"a"})
    read_captions(str(path))
    assert f"captions `{path}`: read as tar, .txt files" in caplog.messages


def test_globs_take_files_of_several_forms_in_order(tmp_path, write):
    write("b.jsonl", '"two"\n')
    write("a.txt", "one\n")
    write("c.csv", "caption\nthree\n")
    assert read_captions(f"{tmp_path}/?.*") == ["one", "two", "three"]
    assert "no file has such a name" in refused(read_captions, f"{tmp_path}/*.x")
    assert "is a directory" in refused(read_captions, str(tmp_path))
    literal = write("[a].txt", "four\n")
    assert read_captions(literal) == ["four"]


@pytest.mark.parametrize(
    "name, data",
    [
        ("x.csv", "caption,text\nno,yes\n"),
        ("x.jsonl", '{"alt": "no", "title": "no", "yes": "yes"}\n'),
        ("x.parquet", parquet(alt=["no"], title=["no"], yes=["yes"])),
    ],
)
def test_an_unclear_column_is_asked_for_and_named(write, name, data, caplog):
    caplog.set_level(logging.INFO, "jaxdefense")
    path = write(name, data)
    message = refused(read_captions, path)
    assert path in message and "`FILE::COLUMN`" in message
    columns = ["caption", "text"] if name == "x.csv" else ["alt", "title", "yes"]
    assert all(f"`{column}`" in message for column in columns)
    assert read_captions(f"{path}::{columns[-1]}") == ["yes"]
    assert f"captions `{path}::{columns[-1]}`: read as " in caplog.text
    assert "has no column `none`" in refused(read_captions, f"{path}::none")


@pytest.mark.parametrize("number", ["", "::caption"])
def test_columns_of_one_name_are_refused(write, number):
    path = write("x.csv", "caption,caption\nno,yes\n")
    assert "column" in refused(read_captions, path + number)
    assert read_captions(write("y.csv", "no,yes\n") + "::2") == ["yes"]


def test_text_that_is_not_utf_8_in_parquet_is_refused(write):
    strings = pa.Array.from_buffers(pa.string(), 1, pa.array([b"Jos\xe9"]).buffers())
    path = write("x.parquet", parquet(caption=strings))
    assert "cannot be read after row 0" in refused(read_captions, path)


def test_a_caption_column_goes_before_a_title(write):
    assert read_captions(write("x.csv", "title,caption\nno,yes\n")) == ["yes"]


def test_columns_of_a_table_without_header_are_called_by_number(write):
    path = write("x.tsv", "1.jpg#0\tA cat\n1.jpg#1\tA feline, asleep\n")
    message = refused(read_captions, path)
    assert "its columns are `1.jpg#0`, `A cat`" in message
    assert message.endswith("or its number, as in `FILE::2`, if the first line names none.")
    assert read_captions(f"{path}::2") == ["A cat", "A feline, asleep"]
    assert "has no column `3`; its columns are `1`, `2`" in refused(read_captions, f"{path}::3")


def test_a_file_whose_name_looks_like_a_column_is_read_as_it_is(write):
    assert read_captions(write("a::b", "a cat\n")) == ["a cat"]
    assert "without columns" in refused(read_captions, write("x", "a cat\n") + "::caption")


def test_rows_without_a_caption_are_skipped_and_counted(write, caplog):
    lines = ['{"caption": "a\u200b cat"}', '{"caption": null}', '{"url": "x"}', '{"caption": " "}']
    path = write("x.jsonl", "\n".join(lines))
    assert read_captions(path) == ["a cat"]
    said = caplog.messages
    assert f"captions `{path}`: rows without a caption are skipped: 3" in said
    assert f"captions `{path}`: 1 invisible characters removed" in said


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("x.jsonl", '{"caption": "a"}\n\n{"caption": \n', ["line 3 is not JSON"]),
        ("x.jsonl", '{"caption": "a"}\n[1]\n', ["line 2 is a JSON array"]),
        ("x.jsonl", '{"caption": 5}\n', ["line 1", "is a JSON number", "another column"]),
        ("x.json", '{"annotations": [{"caption": "a"}, {}]}', ["`annotations[1]`", "`caption`"]),
        ("x.json", '{"caption": "a cat", "url": "x"}', ["`caption`, `url`", "list of objects"]),
        ("x.json", "5", ["holds a JSON number"]),
        ("x.json", "[", ["is not JSON"]),
        ("x.json", "[]", ["holds no caption"]),
        ("x.csv", "", ["holds no caption"]),
        ("x.csv", "image,caption\n1,a cat, asleep\n", ["line 2 has 3 fields", "quotation marks"]),
        ("x.csv", 'caption,id\na,1\n"a" cat,2\n', ["line 3 is no row", "must be doubled"]),
        ("x.csv", 'caption,id\na,1\n"5 inch,2\nb,3\n', ["is no row"]),
        ("x.csv", b"caption,id\na,1\nJos\xe9,2\n", ["line 3 is not UTF-8"]),
        ("x.csv", b"caption,id\na,1\nJ\0s,2\n", ["zero bytes"]),
        ("x.txt", "1\ta cat\n2\ta\tdog\n3\ta bird\n", ["to be a table", "row 2 holds 2 tabs"]),
        ("x.parquet", b"PAR1", ["is no Parquet file"]),
        ("x.parquet", "caption\na\n", ["is no Parquet file"]),
        ("x.parquet", parquet(caption=["a"])[:-9], ["cannot be read after row 0"]),
        ("x.parquet", parquet(text=[{"a": 1}]), ["row 1", "is a JSON object"]),
        ("x.parquet", b"PAR1\x15" + b"x" * 400, ["cannot be read after row 0"]),
        (
            "x.parquet.gz",
            gzip.compress(parquet(text=["a"]), mtime=0),
            ["packed Parquet file; unpack it"],
        ),
        ("x.tar", b"x" * 600, ["tar"]),
        ("x.jsonl.gz", gzip.compress(b'"a"\n', mtime=0)[:-5], ["cannot be read: Truncated"]),
    ],
)
def test_damaged_captions_are_refused_by_file_and_row(write, name, data, words):
    path = write(name, data)
    message = refused(read_captions, path)
    assert path in message and all(word in message for word in words), message


def test_a_caption_of_a_shard_that_is_not_utf_8_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"1.txt": b"a", "2.txt": b"Jos\xe9"})
    assert "member 2.txt is not UTF-8" in refused(read_captions, str(path))
    path = write_tar(tmp_path / "x.tar", {"1.jpg": b"a"})
    assert "holds no .txt file; it has `.jpg`" in refused(read_captions, str(path))


cells = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cf"), include_characters="\n\t"),
    min_size=1,
).filter(str.strip)


@given(st.lists(cells, min_size=1), st.sampled_from(",;|"))
def test_any_text_in_a_table_is_what_the_library_reads(tmp_path_factory, texts, delimiter):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [["caption", "a", "b"], *([text, "x", "y"] for text in texts)]
    path.write_text(table(rows, delimiter=delimiter), newline="", encoding="utf-8")
    found = list(CaptionFiles(str(path)))
    assert found == [clean(text) for text in texts if clean(text)]


def test_captions_of_coco_are_those_of_its_pairs(shared_data, tmp_path):
    pairs = read_pairs(str(shared_data / "coco_pairs"), lambda line: None)
    wanted = [text for captions in pairs.captions for text in captions]
    assert sorted(read_captions(str(shared_data / "coco_pairs/captions.json"))) == sorted(wanted)


def test_large_structured_captions_are_mapped_and_equal_those_in_memory(
    tmp_path, monkeypatch, write
):
    write_tokenizer(tmp_path)
    tokenizer, texts = Tokenizer(tmp_path, 16), [f"a {i} dogs on grass" for i in range(60)]
    texts[7] = "9 cats and Joe Cool"
    lines = [json.dumps({"caption": text}) for text in texts]
    source = str(tmp_path / "part-*.jsonl")
    for i in range(3):
        write(f"part-{i}.jsonl", "\n".join(lines[20 * i : 20 * i + 20]))
    monkeypatch.setattr(token_cache, "_MAPPED", 1)
    monkeypatch.setattr(token_cache, "_CHUNK", 11)
    first = read_training_captions(source, "", ["Joe Cool"], tokenizer)
    wanted = tokenize_captions(texts[:7] + texts[8:], tiny_tokenizer(16))
    found = first.captions.contents(np.arange(59))
    np.testing.assert_array_equal(found.flat, wanted.tokens)
    assert first.dropped == 1 and isinstance(first.captions.tokens, np.memmap)
    # The same captions in another form are the same run, and are not tokenised again.
    monkeypatch.setattr(token_cache, "tokenize_captions", None)
    other = write("x.parquet", parquet(caption=texts))
    assert read_training_captions(other, "", ["Joe Cool"], tokenizer).sha256 == first.sha256
    (tmp_path / "part-1.jsonl").write_text('"another"\n')
    with pytest.raises(TypeError):
        read_training_captions(source, "", ["Joe Cool"], tokenizer)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.jsonl.zst"])
def test_memory_does_not_grow_with_the_captions(write, name):
    peaks = []
    for num in (10, 4_000, 12_000):  # the first imports
        texts = [f"a caption of some length, number {i}" for i in range(num)]
        lines = "".join(json.dumps({"caption": text}) + "\n" for text in texts).encode()
        data = {
            "x.jsonl": lines,
            "x.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
            "x.csv": table([["caption"], *([text] for text in texts)]),
            "x.parquet": parquet(2_000, caption=texts),
        }[name]
        files = CaptionFiles(write(name, data))
        tracemalloc.start()
        assert sum(1 for _ in files) == num
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


# Photos


def photos(num, first=0):
    return [png(i) for i in range(first, first + num)]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": photos(5), "caption": TEXTS},
        {"blob": photos(5), "id": list(range(5))},
        {"image": [{"bytes": x, "path": "a"} for x in photos(5)], "label": list(range(5))},
        {"jpg": photos(5), "image": photos(5)},
    ],
)
def test_photos_of_parquet_are_their_bytes(write, columns):
    path = write("x.parquet", parquet(**columns))
    images = read_images(path)
    assert [photo.read_bytes() for photo in images] == photos(5)
    assert images[3].read_bytes() == png(3) and str(images[3]) == f"{path}, row 4"
    assert len(describe_images(images)) == 64


def test_photos_of_several_parquet_files_leave_out_rows_without_one(tmp_path, write):
    first, second = photos(3), photos(3, 3)
    write("0.parquet", parquet(jpg=[first[0], None, *first[1:]], key=list("abcd")))
    write("1.parquet", parquet(jpg=[None, None, *second], key=list("abcde")))
    for source in (tmp_path, f"{tmp_path}/*.parquet", f"{tmp_path}/{{0..1}}.parquet::jpg"):
        said = []
        images = read_images(str(source), note=said.append)
        assert [photo.read_bytes() for photo in images] == first + second and not said
    assert str(images[1]) == f"{tmp_path}/0.parquet, row 3"
    before = describe_images(images)
    write("1.parquet", parquet(jpg=[*second, png(9)], key=list("abcd")))
    assert describe_images(read_images(str(tmp_path))) != before


def test_parquet_beside_shards_is_what_made_them(tmp_path, write):
    write("0.parquet", parquet(url=["x"], caption=["a"]))
    write_tar(tmp_path / "0.tar", {"a.png": png(1)})
    said = []
    assert [x.read_bytes() for x in read_images(str(tmp_path), note=said.append)] == [png(1)]
    assert said == [f"images `{tmp_path}`: not used: 1 .parquet (first `0.parquet`)"]


@pytest.mark.parametrize(
    "data, column, words",
    [
        (parquet(url=["x"], TEXT=["a"]), "", ["no column with the bytes", "img2dataset"]),
        (parquet(n=[1]), "", ["no column with the bytes of photos."]),
        (parquet(a=[b"x"], b=[b"x"]), "", ["which column holds the photos", "`FILE::COLUMN`"]),
        (parquet(a=[b"x"], b=[b"x"]), "::c", ["no column `c`"]),
        (b"PAR1" + b"x" * 99, "", ["is not a whole Parquet file"]),
    ],
)
def test_parquet_without_photos_is_refused(write, data, column, words):
    message = refused(read_images, write("x.parquet", data) + column)
    assert "x.parquet" in message and all(word in message for word in words), message


def test_a_damaged_group_of_photos_is_named(write):
    data = parquet(image=[png(1), None])
    path = write("x.parquet", data[:4] + bytes(60) + data[64:])
    assert "group 0 of rows cannot be read" in refused(read_images, path)
    data = parquet(image=photos(2))  # not looked at until it is read
    images = read_images(write("x.parquet", data[:4] + bytes(60) + data[64:]))
    with pytest.raises(OSError, match="group 0 of rows"):
        images[0].read_bytes()


def test_a_column_of_a_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.png": png(1)})
    assert "`::COLUMN` with Parquet alone" in refused(read_images, f"{path}::jpg")


def test_large_groups_of_photos_are_warned_of(write, monkeypatch, caplog):
    path = write("x.parquet", parquet(image=photos(2)))
    monkeypatch.setattr(parquet_images, "_LARGE", 1)
    read_images(path)
    assert "groups of some 100 rows" in caplog.text
