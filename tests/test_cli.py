"""The command line: what a user can get wrong gives exit code 2, one line, and writes nothing."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from factories import CAPTIONS, PAPER_TEXT_FLAGS, write_model_directory
from PIL import Image

from jaxdefense import errors
from jaxdefense.cli import main
from jaxdefense.config import TextTrainConfig
from jaxdefense.convert import directory
from jaxdefense.errors import InputError
from jaxdefense.files import locked
from jaxdefense.huge_pages import ask_for_huge_pages
from jaxdefense.run_directory import _difference, claimed

SIZES = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=3"]
SMALL = [*SIZES, *PAPER_TEXT_FLAGS]


def write_inputs(path):
    write_model_directory(path / "model")
    (path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    for name in ("Joe_Cool", "Zoe"):
        (path / "faces" / name).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 255, (14, 14, 3), np.uint8)
        Image.fromarray(image).save(path / "faces" / name / "0.png")
    return path


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Inputs and a run on them; `done` copies them."""
    path = write_inputs(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert defend() == 0
    return path


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    """Inputs and a finished run, for one test to spoil."""
    path = shutil.copytree(finished, tmp_path / "finished")
    monkeypatch.chdir(path)
    return path


def defend(*flags, settings=()):
    defaults = {
        "--model": "model",
        "--names": "names.txt",
        "--captions": "captions.txt",
        "--out": "run",
    }
    defaults |= dict(zip(flags[::2], flags[1::2], strict=True))
    sets = [x for setting in (*SMALL, *settings) for x in ("--set", setting)]
    return main(["defend", "text", *(x for pair in defaults.items() for x in pair), *sets])


def assert_refused(capsys, code, *words):
    """One line says what is wrong, beside those with a time that say what was done before."""
    timed = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    err = capsys.readouterr().err.strip()
    err = "\n".join(line for line in err.splitlines() if not timed.match(line))
    assert code == 2, err
    assert err.count("\n") == 0 and err.startswith("jaxdefense: error: "), err
    for word in words:
        assert word in err, err


def write(data):
    def wrong(inputs):
        (inputs / "names.txt").write_bytes(data)

    return wrong


def captions(data):
    def wrong(inputs):
        (inputs / "captions.txt").write_bytes(data)

    return wrong


def truncated(inputs):
    file = inputs / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def not_clip(inputs):
    (inputs / "model" / "config.json").write_text(
        json.dumps({"architectures": ["BertModel"], "model_type": "bert"})
    )


def no_tokenizer(inputs):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (inputs / "model" / name).unlink()


def another_run(inputs):
    (inputs / "run").mkdir()
    (inputs / "run" / "config.json").write_text('{"train": {"steps": 9}}')


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, "no difference"),
        ({"a": 2, "b": {"c": 2}}, "`a` is 2 there, 1 here"),
        ({"a": 1, "b": {"c": 2}}, "`b.d` is unknown there, 3 here"),
        ({"a": 1, "b": {"c": 2, "d": 3, "e": ""}}, "`b.e` is '' there, unknown here"),
        (None, "its config.json cannot be read"),
    ],
)
def test_runs_differ_in_the_first_setting_that_differs(found, said):
    assert _difference(found, {"a": 1, "b": {"c": 2, "d": 3}}) == said


def finished_run(inputs):
    another_run(inputs)
    (inputs / "run" / "summary.json").write_text("{}")


def other_files(inputs):
    (inputs / "run").mkdir()
    (inputs / "run" / "thesis.tex").write_text("x")


WRONG = {
    "names missing": (lambda i: (i / "names.txt").unlink(), ["names.txt", "does not exist"]),
    "names a directory": (
        lambda i: ((i / "names.txt").unlink(), (i / "names.txt").mkdir()),
        ["names.txt", "cannot be read"],
    ),
    "names empty": (write(b"\n# nobody\n\n"), ["names.txt", "nobody"]),
    "names twice": (write(b"Joe Cool\nAda\njoe  cool\n"), ["'joe cool'", "twice"]),
    "alias of another": (write(b"Joe Cool\nAda\tJoe Cool\n"), ["twice"]),
    "name too long": (write(b"Joe\n" + b"Jo " * 40), ["tokens", "holds 22", "shorten"]),
    "name one endless word": (write(b"x" * 4000), ["tokens", "shorten"]),
    "names not UTF-8": (write(b"Joe\nJos\xe9\n"), ["line 2", "UTF-8"]),
    "names a table": (write(b"Title,Email\nMr,j@x.org\n"), ["'Title,Email'", "header"]),
    "names in UTF-16": (write("Joe Cool\n".encode("utf-16-le")), ["names.txt", "is UTF-16LE"]),
    "captions in JSON": (captions(b'{"annotations": [{"caption": 5}]}'), ["item 1", "number"]),
    "captions packed": (captions(b"\x1f\x8b\x08\0\0\0"), ["captions.txt", "Truncated"]),
    "captions missing": (lambda i: (i / "captions.txt").unlink(), ["captions.txt", "not exist"]),
    "captions empty": (captions(b"\n \n"), ["captions.txt", "no caption"]),
    "captions not UTF-8": (captions(b"a\n\xff\xfe\n"), ["captions.txt", "line 2", "UTF-8"]),
    "captions all named": (captions(b"Joe Cool at sea\nada king\n"), ["all 2", "listed name"]),
    "model missing": (lambda i: (i / "model").rename(i / "elsewhere"), ["config.json", "model"]),
    "model without tokenizer": (no_tokenizer, ["holds no tokenizer"]),
    "model truncated": (truncated, ["model.safetensors", "not a whole safetensors file"]),
    "model not CLIP": (not_clip, ["BertModel", "CLIPModel"]),
    "out another run": (another_run, ["run", "another run"]),
    "out finished": (finished_run, ["run", "finished run"]),
    "out other files": (other_files, ["run", "holds no run"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_defend_text_refuses(inputs, capsys, case):
    spoil, words = WRONG[case]
    spoil(inputs)
    before = sorted(path.name for path in (inputs / "run").rglob("*"))
    assert_refused(capsys, defend(), *words)
    assert sorted(path.name for path in (inputs / "run").rglob("*")) == before


SETTINGS = {
    "train.stepps=3": ["unknown: --train.stepps=3", "perhaps --train.steps"],
    "train.steps=-1": ["steps", "at least 0"],
    "train.steps=many": ["train.steps", "int"],
    "train.distance=euclid": ["distance", "cosine"],
    "train.level=deep": ["train.level", "'hidden'"],
    "train.w_utility=-1": ["w_utility", "at least 0"],
    "train.w_name=1.0": ["train.num_name", "only together"],
    "train": ["key=value"],
    "train=3": ["unknown: --train=3"],
    "mesh.data=3": ["mesh", "8"],
    "optimizer.lr=-1": ["lr", "above 0"],
    "data.row_length=16": ["data.row_length", "(=24 tokens)"],
    "mesh.tensor=8": ["mlp", "mesh axis `tensor` (=8)", "make it 5 or 4"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_defend_text_refuses_setting(inputs, capsys, setting):
    assert_refused(capsys, defend(settings=[setting]), *SETTINGS[setting])
    assert not (inputs / "run").exists()


def test_defend_text_refuses_to_write_into_the_model(inputs, capsys):
    before = sorted((inputs / "model").iterdir())
    assert_refused(capsys, defend("--out", "model/run"), "model/run", "outside")
    assert sorted((inputs / "model").iterdir()) == before


@pytest.mark.parametrize("file", ["names.txt", "captions.txt", "model/model.safetensors"])
def test_defend_text_refuses_to_go_on_with_other_inputs(done, capsys, file):
    (done / "run" / "summary.json").unlink()  # as if broken off
    data = bytearray((done / file).read_bytes())
    data[-2] ^= 1
    (done / file).write_bytes(data)
    assert_refused(capsys, defend(), "another run", "sha256")
    assert (done / "run" / "model").exists()


def test_defend_text_refuses_rows_the_mesh_does_not_divide(inputs, capsys):
    code = defend(settings=["train.level=hidden", "train.num_clean=5", "train.num_poisoned=4"])
    assert_refused(capsys, code, "(=9)", "use 8 or 16")


def test_defend_text_names_a_missing_flag(inputs, capsys):
    code = main(["defend", "text", "--model", "model", "--out", "run"])
    assert_refused(capsys, code, "missing: --names, --captions")


def test_defend_text_takes_odd_captions_and_a_name_that_just_fits(inputs):
    odd = [
        "\ufeffein Hund läuft\r\n猫が走る\r\n".encode(),
        b"cat\ndog\n\n\nhorse\n",
        b"word " * 10_000 + b"\na cat\n",
    ]
    (inputs / "captions.txt").write_bytes(b"".join(odd))
    (inputs / "names.txt").write_text("Jo " * 11)  # 22 tokens
    assert defend() == 0
    assert (inputs / "run" / "model" / "model.safetensors").exists()
    assert (inputs / "run" / "report.html").exists()


def test_defend_text_tells_whom_it_removes_and_what_it_drops(inputs, capsys):
    (inputs / "captions.txt").write_text("Joe_Cool.jpg\na cat on a mat\ntwo dogs [at] sea\n" * 4)
    (inputs / "names.txt").write_text("Joe Cool\tJ. Cool\n")
    assert defend() == 0
    said = capsys.readouterr().err
    assert "captions dropped, as they hold a listed name: 4: " + "'Joe_Cool.jpg', " * 3 in said
    assert "removing 1 person: Joe Cool (also J. Cool)\n" in said


def test_full_disk_at_the_end_loses_nothing(inputs, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "save_file", full)
        code = defend()
    err = capsys.readouterr().err
    assert code == 1 and "No space left on device" in err.splitlines()[-1]
    left = {path.name for path in (inputs / "run").iterdir()}
    assert left == {"config.json", "held_out.json", "metrics.jsonl", "checkpoints"}
    assert defend() == 0  # goes on from the checkpoint
    assert "resuming at step 3" in capsys.readouterr().err


FLAGS = {  # every command, and what takes a path in it
    "defend text": "model names captions out profile config",
    "defend image": "model faces names images target out profile config",
    "defend both": "model names captions faces images target out profile config",
    "merge": "text image out config",
    "attack": "model faces strangers unseen-by candidates sexes templates before names aliases "
    "tfds-dir out config",
    "evaluate": "model teacher captions names images faces image-target zeroshot collateral "
    "class-names out config",
    "sweep text": "model names captions faces clean zeroshot out config",
    "sweep image": "model faces names images target clean zeroshot out config",
    "sweep both": "model names captions faces images target clean clean-images zeroshot out config",
    "report": "out",
    "demo": "out",
    "bench text": "captions tokenizer",
    "bench cold": "model",
}
ADDRESSES = ["gcs://bucket/x", "hf://datasets/x", "file:///x", "HTTPS://a.b/x"]


@pytest.mark.parametrize("command", FLAGS)
def test_addresses_are_refused_in_every_flag_that_takes_a_path(
    tmp_path, capsys, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    for i, flag in enumerate(FLAGS[command].split()):
        address = ADDRESSES[i % len(ADDRESSES)]
        rest = ["run", "--out", "x.html"] if command == "report" else []
        code = main([*command.split(), *rest, f"--{flag}", address])
        assert_refused(capsys, code, address, "is an address", "local paths and s3, gs, az")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["report", "a", "ftp://b/run", "--out", "r.html"],
        ["convert", "http://b/m", "out", "--to", "hf"],
        ["convert", "m", "http://b/m", "--to", "hf"],
        ["attack", "--set", "model.tokenizer=hf://b/t"],
        ["attack", "--set", "exclude=hf://b", "--out", "x", "--model", "m", "--faces", "f"],
        ["defend", "text", "--set", "cache.compilation=file:///c"],
    ],
)
def test_addresses_are_refused_in_arguments_and_settings(tmp_path, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, main(argv), "is an address")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["x" * 300, "loop"])
def test_path_that_cannot_be_looked_at_is_refused(tmp_path, capsys, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for flag in ("model", "faces", "config", "out"):
        code = main(["attack", f"--{flag}", path])
        assert_refused(capsys, code, path, "cannot be looked at")
    assert_refused(capsys, main(["convert", path, "out", "--to", "hf"]), "cannot be looked at")


def test_addresses_are_refused_in_a_config_file(inputs, capsys):
    (inputs / "config.py").write_text(
        "from pathlib import Path\nfrom ml_collections import ConfigDict\n"
        "def get_config():\n  return ConfigDict({'out': Path('ftp://bucket/run')})\n"
    )
    flags = ["--model", "model", "--names", "names.txt", "--captions", "captions.txt"]
    code = main(["defend", "text", *flags, "--config", "config.py"])
    assert_refused(capsys, code, "`out` (=ftp:/bucket/run) is an address")
    assert not (inputs / "ftp:").exists()


def test_error_that_no_user_can_mend_ends_with_1_and_a_traceback(inputs, capsys, monkeypatch):
    for error in (ValueError("a bug"), OSError(errno.EIO, "Input/output error"), KeyError("x")):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr("jaxdefense.defense.text.plan_text", broken)
        assert defend() == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and str(error) in err


@pytest.mark.parametrize("error, code", [("InputError", 2), ("RunError", 1)])
def test_error_that_one_line_explains_has_no_traceback(inputs, capsys, monkeypatch, error, code):
    def broken(*_):
        raise getattr(errors, error)("what is\nwrong")

    monkeypatch.setattr("jaxdefense.defense.text.plan_text", broken)
    assert defend() == code
    assert capsys.readouterr().err == "jaxdefense: error: what is wrong\n"


def test_link_to_nothing_beside_the_model_is_refused_before_the_first_step(inputs, capsys):
    (inputs / "model/README.md").symlink_to("../../blobs/gone")
    assert_refused(capsys, defend(), "README.md` is a link to ../../blobs/gone", "not exist")
    assert not (inputs / "run").exists()
    convert = ["convert", "model", "out", "--to", "openclip"]
    assert_refused(capsys, main(convert), "README.md` is a link to")
    (inputs / "model/README.md").unlink()
    assert defend() == 0


OUTPUTS = {  # of commands that write a directory
    "defend": ["defend", "text", "--names", "names.txt", "--captions", "captions.txt"],
    "attack": ["attack", "--faces", "faces", "--set", "num_candidates=5"],
    "evaluate": ["evaluate", "--teacher", "model", "--captions", "captions.txt"],
}


def writes(command, out, model="model"):
    if command == "convert":
        return main(["convert", model, out, "--to", "openclip"])
    if command == "merge":
        return main(["merge", "--text", model, "--image", "model", "--out", out])
    sets = [x for setting in SMALL * (command == "defend") for x in ("--set", setting)]
    return main([*OUTPUTS[command], *sets, "--model", model, "--out", out])


@pytest.mark.parametrize("command", [*OUTPUTS, "convert", "merge"])
def test_output_that_cannot_be_written_is_refused_before_the_first_step(inputs, capsys, command):
    (inputs / "file").touch()
    (inputs / "gone").symlink_to("nowhere")
    before = sorted(inputs.rglob("*"))
    for out in ("file/run", "file", "gone", "x" * 300, "model/run"):
        code = writes(command, out)
        words = "in the model directory" if out == "model/run" else ""
        assert_refused(capsys, code, out, words)
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize("command", OUTPUTS)
def test_directory_of_results_is_one_runs_alone(inputs, capsys, command):
    code = (
        "import sys; from pathlib import Path; from jaxdefense.run_directory import claimed\n"
        "with claimed(Path('run')): print(flush=True); sys.stdin.read()"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=inputs, **pipes) as other:
        assert other.stdin and other.stdout
        other.stdout.readline()
        assert_refused(capsys, writes(command, "run"), "`run` is in use by", f"process {other.pid}")
        assert [path.name for path in (inputs / "run").iterdir()] == [".lock"]
        other.kill()
    if command == "defend":
        assert defend() == 0  # the lock of a process that was killed is none
        assert not (inputs / "run/.lock").exists()


def test_claims_take_turns_and_leave_nothing(tmp_path):
    """Threads, each with a lock of its own, want one directory: never two in it, nothing stays."""
    (tmp_path / "run").mkdir()

    def take(_):
        with contextlib.suppress(InputError), claimed(tmp_path / "run"):
            os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
            (tmp_path / "inside").unlink()
            return 1
        return 0

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(take, range(500)))
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"]


def test_lock_whose_file_was_removed_meanwhile_is_none(tmp_path):
    path, waits = tmp_path / "lock", threading.Event()

    def wait_for_it():
        with locked(path, waits.set):
            return path.exists()  # else the next process would make another, and be let through

    with ThreadPoolExecutor(1) as thread:
        with locked(path, lambda: None):
            found = thread.submit(wait_for_it)
            assert waits.wait(60)
            path.unlink()
        assert found.result()


def test_run_directory_is_taken_for_the_model_in_it(done, capsys):
    image = np.random.default_rng(1).integers(0, 255, (14, 14, 3), np.uint8)
    Image.fromarray(image).save(done / "faces/Zoe/0.png")
    said = "`run` is a run directory: its model is read"
    for command in ("convert", "attack", "evaluate", "defend"):
        assert writes(command, f"{command}-out", model="run") == 0
        assert capsys.readouterr().err.count(said) == 1, command
    for name in ("run", "run/model"):
        flags = ["--captions", "captions.txt", "--teacher", name, "--out", f"by-{name[-1]}"]
        assert main(["evaluate", "--model", "model", "--set", "model.tokenizer=run", *flags]) == 0
    results = [json.loads((done / f"by-{x}/summary.json").read_text()) for x in "nl"]
    assert results[0] == results[1]
    (done / "run/summary.json").unlink()
    (done / "results").mkdir()
    (done / "results/config.json").write_bytes((done / "attack-out/config.json").read_bytes())
    for model, words in (("run", "a run that is not finished"), ("results", "but no model")):
        capsys.readouterr()
        for command in ("convert", "attack", "merge"):
            assert_refused(capsys, writes(command, "other", model), f"`{model}` holds", words)
    assert not (done / "other").exists()


def test_attack_names_what_is_wrong(inputs, capsys):
    flags = ["--model", "model", "--out", "results", "--set", "num_candidates=5"]
    assert_refused(capsys, main(["attack", *flags, "--faces", "none"]), "none", "not exist")
    (inputs / "faces" / "Zoe" / "0.png").write_bytes(b"not a photo")
    code = main(["attack", *flags, "--faces", "faces"])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "0.png" in err and "photo" in err


def test_attack_takes_its_files_by_flag(inputs, capsys):
    for name, line in (
        ("sexes", "Joe Cool\tm\nZoe\tf\nUna Ek\tf\n"),
        ("templates", "a photo of {0}\n{0}, smiling\n"),
    ):
        (inputs / f"{name}.txt").write_text(line)
    (inputs / "strangers" / "Una_Ek").mkdir(parents=True)
    image = np.random.default_rng(1).integers(0, 255, (14, 14, 3), np.uint8)
    Image.fromarray(image).save(inputs / "strangers" / "Una_Ek" / "0.png")
    (inputs / "names.txt").write_text("Zoe\n")
    attack = ["attack", "--model", "model", "--faces", "faces", "--set", "num_candidates=9"]
    attack += ["--sexes", "sexes.txt", "--templates", "templates.txt", "--strangers", "strangers"]
    assert main([*attack, "--out", "before"]) == 0
    assert main([*attack, "--out", "after", "--before", "before", "--names", "names.txt"]) == 0
    found = json.loads((inputs / "after" / "summary.json").read_text())
    assert found["num_templates"] == 2 and set(found["strangers"]) == {"Una Ek"}
    assert sum(found["outcomes"].values()) == 2 and found["outcomes"]["wrongfully unlearned"] == 0
    assert (inputs / "after" / "results.csv").exists()
    capsys.readouterr()
    (inputs / "sexes.txt").write_text("Joe Cool\tm\nZoe\tf\n")
    assert_refused(capsys, main([*attack, "--out", "x"]), "`sexes` has no line for `Una Ek`")
    (inputs / "sexes.txt").write_text("Joe Cool\tm\nZoe\tf\nUna Ek\tf\n")
    (inputs / "templates.txt").write_text("a photo\n")
    assert_refused(capsys, main([*attack, "--out", "x"]), "templates.txt", "must hold {0} once")
    (inputs / "templates.txt").write_text("a photo of {0}\n")
    attack[attack.index("num_candidates=9")] = "mesh.tensor=5"
    assert_refused(capsys, main([*attack, "--out", "x"]), "mesh data=-1 fsdp=1 tensor=5")
    assert not (inputs / "x").exists()


def test_config_file_and_flags_in_order(inputs, capsys):
    (inputs / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  return ConfigDict({'data': {'names': 'nowhere.txt', 'captions': 'captions.txt'},\n"
        "    'train': {'steps': 7, 'num_clean': 8, 'num_poisoned': 8, 'seed': 5,\n"
        "              'validate': {'every': 0}}})\n"
    )
    flags = ["--model", "model", "--names", "names.txt", "--out", "run", "--config", "config.py"]
    assert main(["defend", "text", *flags, "--set", "train.steps=3"]) == 0
    config = json.loads((inputs / "run" / "config.json").read_text())
    assert config["train"]["seed"] == 5  # the file's
    assert config["train"]["steps"] == 3  # --set over the file
    assert config["data"]["names"] == "names.txt"  # flags over all
    assert config["train"]["validate"]["every"] == 0  # the file's, in a section of a section
    assert config["train"]["w_backdoor"] == TextTrainConfig().w_backdoor  # the default


@pytest.mark.parametrize(
    "text,words",
    [
        ("def get_config(): return 3", ["ConfigDict"]),
        ("x = ", ["SyntaxError"]),
        ("", ["get_config"]),
        (None, ["does not exist"]),
    ],
)
def test_config_file_that_is_none(inputs, capsys, text, words):
    if text is not None:
        (inputs / "config.py").write_text(text)
    code = main(["defend", "text", "--config", "config.py", "--model", "model"])
    assert_refused(capsys, code, "config.py", *words)


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "a.b=1", "a.b=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", "", ""),
        ("always madvise [never]", "", ""),
        (None, "", ""),
    ],
)  # fmt: skip
def test_program_starts_again_once_where_huge_pages_are_given_on_request(
    tmp_path, given, before, after
):
    if given:
        (tmp_path / "enabled").write_text(given)
    code = (
        "import os, sys; from pathlib import Path;"
        "from jaxdefense.huge_pages import ask_for_huge_pages;"
        "print(os.getpid(), flush=True); ask_for_huge_pages(Path(sys.argv[1]));"
        "print(os.environ.get('GLIBC_TUNABLES', ''), *sys.argv[2:], sep='|')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "enabled"), "a b", "--c"]
    done = subprocess.run(
        command,
        env=os.environ | {"GLIBC_TUNABLES": before, "JAXDEFENSE_RESTARTED": ""},
        capture_output=True,
        text=True,
    )
    *pids, last = done.stdout.splitlines()
    assert last == f"{after}|a b|--c", done.stderr
    assert len(pids) == 1 + (before != after)
    assert len(set(pids)) == 1  # what signals it finds it


def test_program_does_not_start_again_for_ever_where_the_setting_is_taken_away(
    tmp_path, monkeypatch
):
    (tmp_path / "enabled").write_text("always [madvise] never")
    started = []
    monkeypatch.setattr(os, "execv", lambda *args: started.append(args))
    monkeypatch.setenv("JAXDEFENSE_RESTARTED", "")
    for _ in range(2):
        monkeypatch.setenv("GLIBC_TUNABLES", "")
        ask_for_huge_pages(tmp_path / "enabled")
    assert len(started) == 1
