"""`find`: whose photos are kept, in folders that the defenses take, however it is broken off."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_sources import png, write_tar

from jaxdefense.cli import main
from jaxdefense.contact_sheet import GAP, TILE, contact_sheet
from jaxdefense.data.identities import read_identities
from jaxdefense.data.people import choose_people, read_people
from jaxdefense.errors import InputError
from jaxdefense.find import run as find_run
from jaxdefense.find.config import FindConfig
from jaxdefense.find.run import find
from jaxdefense.words import name_finder, name_lister

NAMES = "José María Gil\tPepe Gil\nAnn O'Neil\nBo Ek/Berg\nNobody Here\n"
CAPTIONS = [
    "Jose Maria Gil at the beach",
    "a dog on grass",
    "Ann O’Neil and Pepe Gil, 2019",
    "Gil at home",
    "Bo Ek Berg",
    "O'Neil, Ann",
    "Joann O'Neil",
    "ann o'neil again",
]
OWNERS = {
    "José María Gil": {0, 2},
    "Ann O'Neil": {2, 5, 7},
    "Bo Ek/Berg": {4},
    "Nobody Here": set(),
}


def jpeg(seed):
    out = io.BytesIO()
    Image.open(io.BytesIO(png(seed, 20))).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two tars with a photo a caption, and what else img2dataset writes."""
    (tmp_path / "names.txt").write_text(NAMES)
    for shard in range(2):
        members = {}
        for i in range(4 * shard, 4 * shard + 4):
            photo = {f"{i:04}.jpg": jpeg(i)}
            text = {f"{i:04}.txt": CAPTIONS[i].encode()}
            members |= (photo | text if i % 2 else text | photo) | {f"{i:04}.json": b"{}"}
        members |= {"x.jpg": jpeg(90), "y.txt": b"Ann O'Neil without a photo"}
        write_tar(tmp_path / f"shards-{shard:04}.tar", members)
    return f"{tmp_path}/shards-{{0000..0001}}.tar"


def config(root, shards, **settings):
    return FindConfig(
        out=str(root / "faces"), names=str(root / "names.txt"), shards=shards, **settings
    )


def found_in(out):
    """Photo and captions of each folder."""
    return {
        folder.name: {
            photo.read_bytes(): photo.with_suffix(".txt").read_text()
            for photo in folder.iterdir()
            if photo.suffix != ".txt"
        }
        for folder in Path(out).iterdir()
        if folder.is_dir()
    }


WANTED = {
    who.replace("/", " "): {jpeg(i): f"{CAPTIONS[i]}\n" for i in numbers}
    for who, numbers in OWNERS.items()
    if numbers
}


def test_photos_are_found_by_their_captions_a_folder_a_person(tmp_path, shards, caplog):
    summary = find(config(tmp_path, shards))
    assert found_in(tmp_path / "faces") == WANTED
    assert summary.photos == {who: len(numbers) for who, numbers in OWNERS.items()}
    assert (summary.captions, summary.looked_through, summary.shards) == (8, 2, 2)
    people = read_people(str(tmp_path / "faces"), note=lambda line: None)
    listed = read_identities(tmp_path / "names.txt")[:3]
    assert [who.name for who, _ in choose_people(people, listed, "x")] == [x.name for x in listed]
    said = " ".join(summary.sentences("faces"))
    assert "namesakes" in said and "Nothing was found of `Nobody Here`" in said


def test_contact_sheet_shows_each_photo_above_its_name(tmp_path, shards):
    find(config(tmp_path, shards))
    with Image.open(tmp_path / "faces/Ann O'Neil.jpg") as sheet:
        assert sheet.width == 3 * (TILE + GAP) - GAP
        shown = sheet.crop((0, 0, TILE, TILE)).resize((20, 20))
    photo = Image.open(io.BytesIO(jpeg(2))).resize((20, 20))
    near = [abs(a - b) for a, b in zip(shown.tobytes(), photo.tobytes(), strict=True)]
    assert sum(near) / len(near) < 25
    tiles = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue", "green")]
    sheet = contact_sheet(tiles, 2, ["a", "b", "c"])
    step = TILE + GAP
    assert sheet.getpixel((step + TILE // 2, TILE // 2)) == (0, 0, 255)
    assert sheet.getpixel((TILE // 2, 1)) == (255, 255, 255)  # beside the photo, which is wide
    assert sheet.size == (2 * step - GAP, 2 * (step + 12) - GAP)


def test_find_goes_on_where_it_was_broken_off(tmp_path, shards, monkeypatch):
    whole = find(config(tmp_path, shards))
    (tmp_path / "faces").rename(tmp_path / "whole")
    write = find_run.write_text

    def broken(path, text):
        if CAPTIONS[5] in text:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(find_run, "write_text", broken)
    with pytest.raises(KeyboardInterrupt):
        find(config(tmp_path, shards))
    photos = [path for path in (tmp_path / "faces").glob("*/*.jpg")]
    assert photos and all(path.with_suffix(".txt").exists() for path in photos)
    assert not (tmp_path / "faces/summary.json").exists()
    record = tmp_path / "faces/found.jsonl"
    record.write_bytes(record.read_bytes() + b'{"shard": "half')
    monkeypatch.setattr(find_run, "write_text", write)
    (first,) = [path for path in photos if path.read_bytes() == jpeg(0)]
    first.unlink()  # somebody looked, and deleted it
    looked = []
    read = find_run.read_shard
    monkeypatch.setattr(find_run, "read_shard", lambda *args: looked.append(args[0]) or read(*args))
    again = find(config(tmp_path, shards))
    assert [Path(shard).name for shard in looked[1:]] == ["shards-0001.tar"]
    assert again == whole
    assert [json.loads(line)["captions"] for line in record.read_text().splitlines()] == [4, 4]
    wanted = found_in(tmp_path / "whole")
    del wanted["José María Gil"][jpeg(0)]
    assert found_in(tmp_path / "faces") == wanted
    with pytest.raises(InputError, match="holds a finished run"):
        find(config(tmp_path, shards))


def test_another_list_does_not_go_on(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(find_run.Folders, "draw_sheets", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find(config(tmp_path, shards))
    (tmp_path / "names.txt").write_text("Ann\n")
    with pytest.raises(InputError, match="holds another run"):
        find(config(tmp_path, shards))


def test_everybody_has_so_many_photos_at_most(tmp_path, shards, caplog):
    (tmp_path / "names.txt").write_text("Pepe Gil\nAnn O'Neil\n")
    summary = find(config(tmp_path, shards, num_photos=1))
    assert summary.photos == {"Pepe Gil": 1, "Ann O'Neil": 1}
    assert summary.looked_through == 1  # the other shards cannot add any
    (tmp_path / "faces").rename(tmp_path / "other")
    summary = find(config(tmp_path, f"{tmp_path}/shards-0001.tar", num_photos=1))
    assert summary.photos == {"Pepe Gil": 0, "Ann O'Neil": 1}
    assert set(found_in(tmp_path / "faces")["Ann O'Neil"]) == {jpeg(5)}  # the first


def test_copies_and_broken_photos_are_left_out_and_said(tmp_path, shards, caplog):
    members = {}
    for i, data in enumerate([jpeg(1), jpeg(1), jpeg(1)[:-100], b"no photo", png(2, 20)]):
        members |= {f"{i}.jpg": data, f"{i}.txt": f"Ann O'Neil {i}".encode()}
    path = write_tar(tmp_path / "x.tar", members)
    summary = find(config(tmp_path, str(path)))
    wanted = {jpeg(1): "Ann O'Neil 0\n", png(2, 20): "Ann O'Neil 4\n"}
    assert found_in(tmp_path / "faces")["Ann O'Neil"] == wanted
    assert summary.unreadable == 2 and f"`{path}/3.jpg` is no photo" in caplog.text
    suffixes = [x.suffix for x in (tmp_path / "faces/Ann O'Neil").iterdir()]
    assert sorted(suffixes) == [".jpg", ".png", ".txt", ".txt"]  # by what they are


@pytest.mark.parametrize("form", ["bytes", "object"])
def test_photos_of_parquet_are_found_too(tmp_path, shards, form):
    photos = [jpeg(i) for i in range(8)]
    column = photos if form == "bytes" else [{"bytes": x, "path": ""} for x in photos]
    table = pa.table({"image": column, "TEXT": CAPTIONS, "label": list("abcdefgh")})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    summary = find(config(tmp_path, f"{tmp_path}/*.parquet"))
    assert found_in(tmp_path / "faces") == WANTED
    where = [
        x
        for line in (tmp_path / "faces/found.jsonl").read_text().splitlines()
        for x in json.loads(line)["photos"]["Bo Ek/Berg"].values()
    ]
    assert where == [f"{tmp_path}/x.parquet, row 5"] and summary.captions == 8


@pytest.mark.parametrize(
    "columns, source, settings, words",
    [
        ({"a": [b""], "b": [b""], "text": ["x"]}, "", {}, ["the photos", "give `photo_column`"]),
        ({"image": [b""], "x": ["x"]}, "", {}, ["the captions", "`image`, `x`", "`FILE::COLUMN`"]),
        ({"url": ["x"], "text": ["x"]}, "", {}, ["no column with the bytes", "img2dataset"]),
        ({"image": [b""], "x": ["x"]}, "::y", {}, ["no column `y`"]),
        ({"image": [b""], "text": ["x"]}, "", {"photo_column": "text"}, ["no column `text`"]),
    ],
)
def test_unclear_columns_are_refused_before_anything_is_written(
    tmp_path, shards, columns, source, settings, words
):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError) as info:
        find(config(tmp_path, f"{tmp_path}/x.parquet{source}", **settings))
    assert all(word in str(info.value) for word in words), info.value
    assert not (tmp_path / "faces").exists()


def test_shards_of_another_order_or_form_are_refused(tmp_path, shards):
    members = {"1.jpg": jpeg(1), "2.jpg": jpeg(2), "1.txt": b"a", "2.txt": b"b"}
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match="2 photos and 2 .txt files, but none of one name"):
        find(config(tmp_path, str(path)))
    (tmp_path / "x.txt").write_text("a cat\n")
    with pytest.raises(InputError, match="is text; must be a .tar"):
        find(config(tmp_path, f"{tmp_path}/x.txt"))
    with pytest.raises(InputError, match="shards-0002.tar` does not exist"):
        find(config(tmp_path, f"{tmp_path}/shards-{{0000..0002}}.tar"))
    with pytest.raises(InputError, match="at most 2000"):
        config(tmp_path, "x", num_photos=9999)


def test_a_damaged_shard_and_a_caption_are_skipped_and_counted(tmp_path, shards, caplog):
    write_tar(tmp_path / "shards-0002.tar", {"1.jpg": jpeg(1), "1.txt": b"Ann O'Neil \xe9"})
    table = pa.table({"image": [jpeg(1)], "text": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "shards-0003.tar")
    write_tar(tmp_path / "shards-0004.tar", {"1.json": b"{}"})
    whole = (tmp_path / "shards-0000.tar").read_bytes()
    (tmp_path / "shards-0000.tar").write_bytes(b"x" * 600)
    (tmp_path / "shards-0005.tar").write_bytes(whole[: whole.index(b"Ann O'Neil without") - 700])
    summary = find(config(tmp_path, f"{tmp_path}/shards-*.tar"))
    assert [Path(x).name[7:11] for x in summary.damaged] == ["0000", "0003", "0004", "0005"]
    assert summary.looked_through == 6 and summary.unreadable_captions == 1
    assert summary.photos == {who: len(numbers) for who, numbers in OWNERS.items()}
    lines = [json.loads(x) for x in (tmp_path / "faces/found.jsonl").read_text().splitlines()]
    assert "no row with a caption in `text`" in lines[3]["damaged"] and not lines[1]["damaged"]
    assert "0 photos and 0 .txt files" in lines[4]["damaged"]
    assert "1.txt is not UTF-8" in caplog.text
    assert "4 shards could not be read" in " ".join(summary.sentences("faces"))


def test_drawings_called_photos_are_not_drawn(tmp_path, shards, caplog):
    drawing = io.BytesIO()
    Image.open(io.BytesIO(png(1))).save(drawing, "EPS")
    photo = write_tar(tmp_path / "x.tar", {"1.jpg": drawing.getvalue(), "1.txt": b"Ann O'Neil"})
    summary = find(config(tmp_path, str(photo)))
    assert summary.unreadable == 1 and not summary.photos["Ann O'Neil"]
    assert "cannot identify" in caplog.text and "Ghostscript" not in caplog.text


def test_find_as_a_command(tmp_path, shards, capsys):
    flags = ["--names", f"{tmp_path}/names.txt", "--shards", shards, "--out", f"{tmp_path}/faces"]
    assert main(["find", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["photos"]["Bo Ek/Berg"] == 1
    assert main(["find", *flags]) == 2
    assert "holds a finished run" in " ".join(capsys.readouterr().err.split())


def test_names_in_a_caption_are_all_told():
    names = ["José María Gil", "Pepe Gil", "Ann O'Neil", "Gil", "Ann Gil"]
    which = name_lister(names)
    texts = [*CAPTIONS, "Gil, Ann", "Gil Ann", "AnnGil", "ann-gil's &amp; PEPE_GIL.jpg"]
    assert which("Gil, Ann") == {"Gil", "Ann Gil"} and which("Gil Ann") == {"Gil"}
    for text in texts:
        assert which(text) == {name for name in names if name_finder([name])(text)}
