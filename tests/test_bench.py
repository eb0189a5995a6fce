"""Benchmarks run, and say what they measured.

tests/test_step.py and tests/test_image_step.py compare the losses of the step with those of a torch
loop.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from factories import write_faces, write_model_directory, write_photos
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from jaxdefense.bench import idia, scale
from jaxdefense.bench import side_by_side as comparison
from jaxdefense.bench.end2end import _time_runs
from jaxdefense.bench.process import Process, elsewhere, peak_memory
from jaxdefense.bench.scale import SIZES, count_parameters, exponent
from jaxdefense.bench.show import show
from jaxdefense.bench.side_by_side import Processes, Timing, shares, side_by_side
from jaxdefense.bench.torch.overlay import pillow_overlay
from jaxdefense.cli import main
from jaxdefense.clip.config import CLIPConfig, TextConfig
from jaxdefense.clip.presets import PRESETS
from jaxdefense.config import PAPER_IMAGE
from jaxdefense.errors import InputError
from jaxdefense.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("one_thread")
WITH_AND_WITHOUT_TORCH = [pytest.param(True, marks=pytest.mark.torch), False]
ONCE = ["--rounds", "1"]
KINDS = {
    "text": ["--num", "16", "--people", "3", "--calls", "1", "--no-compiled"],
    "image": ["--num", "8", "--calls", "1", "--no-compiled"],
    "idia": [
        "--size",
        "demo",
        "--names",
        "3",
        "--photos",
        "5",
        "--candidates",
        "11",
        "--no-compiled",
    ],
    "pipeline": ["--num", "8", "--people", "3", "--calls", "1"],
    "end2end": ["--num", "8", "--people", "3", "--steps", "2"],
}


class Here:
    """An implementation in this process, in place of `Process`, so that no library loads again."""

    def __init__(self, constructor):
        self._served = constructor()

    def __call__(self, method, *args):
        return getattr(self._served, method)(*args)

    method = Process.method

    def end(self):
        pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Flags for a few small photos, rather than many drawn ones."""
    path = tmp_path_factory.mktemp("photos")
    images = write_photos(path / "images", 9)
    write_faces(path / "faces", ["Joe Cool", "Ada King"], 4)
    return ["--images", str(images), "--faces", str(path / "faces")]


@pytest.fixture
def here(monkeypatch):
    for module in ("side_by_side", "process", "end2end"):
        monkeypatch.setattr(f"jaxdefense.bench.{module}.Process", Here)
    # A fork of this process would take JAX's threads along.
    monkeypatch.setattr("jaxdefense.bench.pipeline.num_cores", lambda: 0)
    # The text bench measures it.
    monkeypatch.setattr("jaxdefense.bench.machine.JaxImplementation.matmul_rate", lambda self: 1e9)
    kept = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", kept)  # `end2end` has its own
    compilation_cache.reset_cache()


def bench(capsys, kind, *flags):
    assert main(["bench", kind, *KINDS[kind], *ONCE, *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_side_by_side_takes_turns_after_a_round_and_a_call_untimed():
    calls = []
    implementations = {name: lambda num, name=name: calls.append(num * name) for name in "ab"}
    timing = side_by_side(implementations, samples=6, rounds=2, calls=3)
    assert "".join(calls) == "aaabbb" + 2 * "aaaabbbb"
    assert {name: len(seconds) for name, seconds in timing.seconds.items()} == {"a": 2, "b": 2}


def test_timing_compares_round_by_round():
    summary = Timing({"jax": [1.0, 2.0, 1.0], "torch": [3.0, 4.0, 4.0]}, samples=8).summary()
    assert summary["samples_per_second"] == {"jax": 8.0, "torch": 2.0}
    assert summary["ratio"] == 3.0 and summary["ratio_range"] == [2.0, 4.0]


def test_second_run_has_what_the_first_one_of_its_round_compiled(monkeypatch):
    outs = []

    class Fake:
        def __init__(self, constructor):
            self._name = constructor()

        def __call__(self, method, *args):
            if method == "run":
                outs.append((self._name, Path(*args)))
                return {"steps": 1.0}
            return 1

        def end(self):
            pass

    monkeypatch.setattr("jaxdefense.bench.end2end.Process", Fake)
    names = ("jaxdefense", "jaxdefense_again", "torch")
    _time_runs({name: partial(str, name) for name in names}, 2, "scratch")
    assert [name for name, _ in outs] == 2 * [*names]
    # Programs are kept beside `out`.
    assert [len({out.parent for _, out in outs[i : i + 3]}) for i in (0, 3)] == [1, 1]
    assert outs[0][1].parent != outs[3][1].parent


def test_timing_of_a_second_run_is_compared_with_the_same_other():
    seconds = {"jaxdefense": [2.0, 2.0], "jaxdefense_again": [1.0, 0.5], "torch": [4.0, 4.0]}
    summary = Timing(seconds, samples=8).summary()
    assert summary["ratio"] == 2.0
    assert summary["ratio_again"] == 6.0 and summary["ratio_again_range"] == [4.0, 8.0]


def test_timing_compares_with_the_fastest_of_the_others():
    seconds = {"jax": [1.0, 1.0], "slow": [9.0, 9.0], "fast": [2.0, 2.0]}
    assert Timing(seconds, samples=8).summary()["ratio"] == 2.0


class Uncompiled:
    """An implementation that may not compile."""

    def __init__(self, why):
        self._why = why

    def peak_memory(self):
        return 0

    def compile(self):
        return self._why


@pytest.mark.parametrize("why", ["", "no C++ compiler"])
def test_an_implementation_that_cannot_be_compiled_is_left_out(here, caplog, why):
    constructors = {x: partial(Uncompiled, why) for x in ("jaxdefense", "torch_compiled")}
    with caplog.at_level("WARNING", "jaxdefense"), Processes(constructors) as processes:
        processes.compile()
        assert list(processes.ask("peak_memory")) == list(constructors)[: 1 if why else 2]
    assert [record.getMessage().endswith(why) for record in caplog.records] == [True] * bool(why)


def test_ratio_to_the_compiled_stands_beside_that_to_the_fastest_plain_one():
    seconds = {"jaxdefense": [1.0, 1.0], "torch": [4.0, 6.0], "torch_compiled": [2.0, 3.0]}
    found = Timing(seconds, samples=8).summary()
    assert found["ratio"] == 5.0 and found["ratio_range"] == [4.0, 6.0]
    assert found["ratio_to_compiled"] == 2.5 and found["ratio_to_compiled_range"] == [2.0, 3.0]


def test_shares_are_of_the_products_that_each_computes():
    found = shares({"a": 10.0, "b": 5.0}, {"a": 8e9, "b": 32e9}, 4, 100e9)
    assert found == {
        "gflop_a_sample": {"a": 2.0, "b": 8.0},
        "gflop_per_second": {"a": 20.0, "b": 40.0},
        "gflop_per_second_of_a_product": 100.0,
        "share": {"a": 0.2, "b": 0.4},
    }


class Worker:
    """What a process is asked in a test."""

    def __init__(self, size=0):
        self._kept = np.ones(size)

    def pid(self):
        return os.getpid()

    def cpu_seconds(self):
        return time.process_time()

    def fail(self, kind):
        raise kind("why")

    def die(self):
        os._exit(3)

    def peak_memory(self):
        return peak_memory()


def test_process_is_another_with_memory_of_its_own():
    big, small = Process(partial(Worker, 40_000_000)), Process(Worker)
    try:
        assert len({os.getpid(), big("pid"), small("pid")}) == 3
        assert 300e6 < big("peak_memory") - small("peak_memory") < 400e6
        taken = np.ones(60_000_000)  # 480 MB: it is not the memory of this process
        assert small("peak_memory") < peak_memory() - 300e6 < 1e3 * taken.nbytes
        before = small("cpu_seconds")
        time.sleep(0.3)
        assert small("cpu_seconds") - before < 0.1  # asleep
        for kind, raised in ((InputError, InputError), (ValueError, RuntimeError)):
            with pytest.raises(raised, match="why"):
                small("fail", kind)
        with pytest.raises(RuntimeError, match="exit code 3"):
            small("die")
    finally:
        big.end()
        small.end()
    assert elsewhere(os.getpid) != os.getpid()


@pytest.mark.parametrize("torch", WITH_AND_WITHOUT_TORCH)
def test_bench_text_in_processes_prints_json_alone(capfd, monkeypatch, torch):
    monkeypatch.setattr(comparison, "has_torch", lambda: torch)
    found = bench(capfd, "text", "--json")
    step = found["step"]
    names = ["jaxdefense", "torch"] if torch else ["jaxdefense"]
    by_name = "samples_per_second", "tokens_per_second", "peak_memory_mb", "gflop_a_sample", "share"
    for figure in by_name:
        assert list(step[figure]) == names
        assert all(value > 0 for value in step[figure].values())
    # A caption is of 3 tokens or more: ends and a word.
    assert all(step["tokens_per_second"][x] > 3 * step["samples_per_second"][x] for x in names)
    assert 0 < found["filled"] <= 1 and found["rows"] * found["row_length"] < 32 * 77
    assert found["clean"] == found["poisoned"] == 16
    gflop = found["kept"]["gflop_a_sample"]
    assert gflop["kept"] < 0.95 * gflop["jaxdefense"] and found["kept"]["ratio"] > 0


@pytest.mark.parametrize("torch", WITH_AND_WITHOUT_TORCH)
@pytest.mark.parametrize(
    "kind", [pytest.param("image", marks=pytest.mark.slow), "idia", "pipeline", "end2end"]
)
def test_bench_measures(capsys, monkeypatch, here, photos, kind, torch):
    monkeypatch.setattr(comparison, "has_torch", lambda: torch)
    if kind == "image":  # its three steps compile sooner; `pipeline` has all devices
        one_device = make_mesh(devices=jax.devices()[:1])
        monkeypatch.setattr("jaxdefense.bench.jax_steps.make_mesh", lambda: one_device)
    found = bench(capsys, kind, "--json", *(photos if kind in ("image", "pipeline") else []))
    others = ["torch"] if torch else []
    parts = {
        "image": {
            "overlay": others,
            "step": others + [f"{name}_reading_ahead" for name in others],
        },
        "idia": {"prompts": others, "matching": others},
        "pipeline": {"text": [*others, "device"], "image": [*others, "device"]},
        "end2end": {"run": ["jaxdefense_again", *others]},
    }
    for part, names in parts[kind].items():
        rates = found[part]["samples_per_second"]
        assert list(rates) == ["jaxdefense", *names] and min(rates.values()) > 0
        assert ("ratio" in found[part] or "made_per_torch" in found[part]) == torch
        if part != "overlay":
            memory = found[part]["peak_memory_mb"]
            assert set(memory) == set(names) - {"device"} | {"jaxdefense"}
        if part != "overlay" and kind != "pipeline":
            for figure in ("gflop_a_sample", "share"):
                assert list(found[part][figure]) == ["jaxdefense", *names]
                assert min(found[part][figure].values()) > 0
    if kind == "image":
        kept = found["kept"]
        assert list(kept["samples_per_second"]) == ["kept", "jaxdefense"] and kept["ratio"] > 0
        gflop = kept["gflop_a_sample"]
        assert gflop["kept"] == pytest.approx(gflop["jaxdefense"] * 6 / 7, rel=0.03)
        found = found["default_loss"]
        assert list(found["samples_per_second"]) == ["jaxdefense", "paper"]
        # 4 student forwards and backwards and 3 of the teacher, where the paper has 2 and 1; and
        # faces as large as the photo.
        assert found["products_a_step"] == pytest.approx((4 * 3 + 3) / (2 * 3 + 1), rel=0.2)
        assert found["time_a_step"] > 0
    if kind == "idia":
        prompts = found["prompts"]
        assert 0 < prompts["tokens_computed_a_prompt"]["jaxdefense"] < 77
        assert not torch or prompts["least_cosine"] > 0.9999
        tokens = list(prompts["tokens_per_second"].values())
        each = [x / y for x, y in zip(tokens, prompts["samples_per_second"].values(), strict=True)]
        assert np.ptp(each) < 0.02 * each[0]  # the same texts, by both counted alike
    if kind == "end2end":
        assert list(found["phases"])[:3] == ["start_process", "import", "read"]
        assert set(found["phases"]["steps"]) == set(found["run"]["seconds"])
        assert ("ratio_again" in found["run"]) == torch
    if kind == "pipeline":
        assert found["text"]["made_per_taken"] > 0 and found["image"]["made_per_taken"] > 0


def test_bench_idia_refuses_other_embeddings():
    class Asked:
        def __init__(self, *samples):
            self._samples = samples

        def ask(self, method):
            assert method == "sample"
            return dict(enumerate(self._samples))

    x_QME = np.zeros((2, 3, 4), np.float32)
    x_QME[..., 0] = 1
    other = x_QME.copy()
    other[1, 2] = [0.99, 0.141, 0, 0]
    compare: Any = idia._compare
    assert compare(Asked(x_QME), "float32") == {}
    assert compare(Asked(x_QME, x_QME), "float32") == {"least_cosine": 1.0}
    with pytest.raises(RuntimeError, match="cosine 0.99"):
        compare(Asked(x_QME, other), "float32")


@pytest.mark.slow
def test_bench_end2end_defends_faces(capsys, here, photos):
    found = bench(capsys, "end2end", "--tower", "image", "--json", *photos)
    assert found["tower"] == "image" and found["run"]["seconds"]["jaxdefense"] > 0


def test_show_prints_tables_of_the_same_figures(capsys):
    figures = {
        "size": "demo",
        "step": {"samples_per_second": {"jaxdefense": 8.25, "torch": 2.0}, "ratio": 4.125},
        "phases": {"read": 1.5},
    }
    show(figures, as_json=True)
    assert json.loads(capsys.readouterr().out) == figures
    show(figures, as_json=False)
    out = capsys.readouterr().out
    assert "{" not in out
    for text in ("demo", "jaxdefense", "samples per second", "8.25", "4.125", "1.5"):
        assert text in out


@pytest.mark.parametrize(
    ("kind", "flag", "value"),
    [
        ("text", "--size", "huge"),
        ("text", "--num", "0"),
        ("text", "--captions", "nowhere"),
        ("image", "--size", "huge"),
        ("image", "--num", "0"),
        ("image", "--images", "nowhere"),
        ("idia", "--size", "huge"),
        ("idia", "--names", "0"),
        ("idia", "--tokenizer", "nowhere"),
        ("pipeline", "--calls", "0"),
        ("pipeline", "--workers", "-1"),
        ("end2end", "--tower", "left"),
        ("end2end", "--steps", "0"),
        ("end2end", "--captions", "nowhere"),
    ],
)
def test_bench_refuses(capsys, here, kind, flag, value):
    assert main(["bench", kind, flag, value]) == 2
    err = capsys.readouterr().err
    assert value in err and "Traceback" not in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1


def test_pillow_overlay_changes_only_what_the_face_covers():
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (64, 64), "white")
    face = Image.fromarray(rng.integers(0, 200, (64, 64, 3)).astype(np.uint8))
    for _ in range(20):
        changed = np.asarray(pillow_overlay(image, face, rng, PAPER_IMAGE.overlay)) != 255
        rows, columns = (changed.any(-1).any(axis).nonzero()[0] for axis in (1, 0))
        assert 15 <= np.ptp(rows) + 1 <= 46 and 15 <= np.ptp(columns) + 1 <= 46
    fills = dataclasses.replace(PAPER_IMAGE.overlay, whole=1.0)
    assert (np.asarray(pillow_overlay(image, face, rng, fills)) < 255).all()


def test_exponent_is_that_of_the_larger_half():
    sizes = [1, 10, 100, 1_000, 10_000]
    assert exponent(sizes, [0.1 + size**1.5 for size in sizes]) == 1.5
    assert exponent(sizes, [7.0] * 5) == 0


def test_bench_scale_measures_each_size_in_a_process_of_its_own(tmp_path, capfd):
    flags = ["--sizes", "8,32", "--json", "--plot", str(tmp_path / "x.png")]
    assert main(["bench", "scale", "candidates", *flags]) == 0
    found = json.loads(capfd.readouterr().out)["candidates"]
    assert list(found) == ["8", "32", "exponent"]
    assert {*found["8"]} == {*found["exponent"]} == {"attack_s", "peak_mb"}
    assert (tmp_path / "x.png").stat().st_size < 30_000
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 300


@pytest.fixture
def small(monkeypatch, here):
    """Points in this process, of little work, each part timed once."""
    tiny = TextConfig(16, 32, 2, 2, vocab_size=2048, embed=8)
    for name, width in (("tiny", 16), ("small", 32)):
        text = dataclasses.replace(tiny, width=width)
        monkeypatch.setitem(PRESETS, name, CLIPConfig(text, None))
    given = {"identities": 2, "captions": 50, "batch": 8, "size": "tiny"}
    monkeypatch.setattr(scale, "_GIVEN", given)
    monkeypatch.setattr(scale, "_TIMES", 1)


@pytest.mark.parametrize(
    ("axis", "sizes"),
    [
        ("captions", "40,50"),
        ("size", "tiny,small"),
        pytest.param("identities", "1,2", marks=pytest.mark.slow),
    ],
)
def test_bench_scale_starts_a_text_defense(tmp_path, monkeypatch, capsys, small, axis, sizes):
    (tmp_path / "captions.txt").write_text("a dog on grass\ntwo cats\n")
    taken, kept = [], os.environ["XDG_CACHE_HOME"]
    write = scale._write_captions
    monkeypatch.setattr(
        scale, "_write_captions", lambda num, *args: taken.append(num) or write(num, *args)
    )
    flags = ["--sizes", sizes, "--captions", str(tmp_path / "captions.txt"), "--json"]
    assert main(["bench", "scale", axis, *flags]) == 0
    assert not Path(kept).exists() and os.environ["XDG_CACHE_HOME"] != kept
    found = json.loads(capsys.readouterr().out)[axis]
    first, last = (found[size] for size in sizes.split(","))
    assert taken == ([40, 50] if axis == "captions" else [50, 50])
    assert all(value > 0 for value in first.values())
    parts = {"first_state_s", "first_step_s", "step_s", "peak_mb"}
    if axis == "size":
        assert list(first)[:2] == ["million_parameters", "million_without_tokens"]
        counted = np.log(count_parameters(["tiny", "small"]))
        growth = np.log(last["step_s"] / first["step_s"]) / (counted[1] - counted[0])
        slopes = [found[f"exponent{over}"]["step_s"] for over in ("", "_without_tokens")]
        np.testing.assert_allclose(slopes, growth, atol=0.01)
    else:
        parts |= {"read_names_s", "tokenise_names_s", "captions_s", "captions_again_s"}
        parts |= {"layout_s", "first_batch_s", "batch_s"}
    assert {*found["exponent"]} == parts and parts <= {*first}


def test_text_encoders_have_the_parameters_that_are_published():
    # Source: open_clip docs/model_profile.csv, `text_mparams`; 49,408 tokens of the width each.
    published = {"ViT-B-32": (63.43, 512), "ViT-L-14": (123.65, 768), "ViT-H-14": (354.03, 1024)}
    counted = count_parameters(list(published))
    for (num, rest), (millions, width) in zip(counted, published.values(), strict=True):
        assert num / 1e6 == pytest.approx(millions, abs=0.01)
        assert num - rest == 49_408 * width


def test_timed_takes_the_median_and_less_often_what_takes_long(monkeypatch):
    clock = iter([0, 1, 10, 11, 20, 30, 40, 41])  # seconds of starts and ends: 1, 1, 10, 1
    monkeypatch.setattr(scale.time, "perf_counter", lambda: next(clock))
    made, parts = iter("abcd"), {}
    assert scale._timed(parts, "x", lambda: next(made), units=2) == "c"
    assert parts == {"x": 0.5}


@pytest.mark.parametrize(
    ("axis", "flag", "value", "said"),
    [
        ("names", "--sizes", "1,2", "candidates"),
        ("batch", "--sizes", "4,2", "growing"),
        ("batch", "--sizes", "0,2", "above 0"),
        ("batch", "--sizes", "demo,2", "numbers"),
        ("size", "--sizes", "demo", "two or more"),
        ("size", "--sizes", "8,16", "ViT-B-32"),
        ("size", "--sizes", "ViT-B-32,ViT-B-16", "larger"),
        ("batch", "--plot", "nowhere/x.png", "exists"),
        ("batch", "--plot", "x.jpg", ".png"),
        ("batch", "--captions", "nowhere", "batch 8: "),
    ],
)
def test_bench_scale_refuses(capsys, here, axis, flag, value, said):
    assert main(["bench", "scale", axis, flag, value]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert said in line and (axis not in SIZES or value in line)


def test_bench_scale_says_in_one_line_which_point_died(capfd, monkeypatch):
    monkeypatch.setattr(scale, "point", die)
    assert main(["bench", "scale", "batch"]) == 1  # no input of the user's is wrong
    *_, line = capfd.readouterr().err.splitlines()
    assert "batch 8: " in line and "exit code 3" in line


def die(*_):
    os._exit(3)


@pytest.mark.slow
def test_bench_cold_finds_compiled_programs_again(tmp_path, capfd):
    path = write_model_directory(
        tmp_path / "model", architecture="CLIPVisionModelWithProjection", text=None
    )
    assert main(["bench", "cold", "--model", str(path), "--num", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    first, again = found["first"], found["again"]
    assert again["compile"] < first["compile"] / 2
    for parts in (first, again):
        assert sum(parts.values()) == pytest.approx(2 * parts["in all"], abs=0.2)
        assert all(seconds >= 0 for seconds in parts.values())
    assert main(["bench", "cold", "--num", "0"]) == 2
    assert "--num" in capfd.readouterr().err


def test_the_image_defense_waits_for_no_library_it_does_not_use():
    code = (
        "import sys, jaxdefense.defense.image;"
        "print(*{'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
