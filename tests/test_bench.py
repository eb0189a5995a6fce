"""Benchmarks run, and say what they measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdefense.bench import image as bench
from jaxdefense.bench.scale import exponent
from jaxdefense.bench.side_by_side import Timing, side_by_side
from jaxdefense.cli import main
from jaxdefense.config import OverlayConfig


def test_side_by_side_takes_turns_after_a_round_untimed():
    calls = []
    contestants = {name: lambda num, name=name: calls.append(num * name) for name in "ab"}
    timing = side_by_side(contestants, samples=6, rounds=2, calls=3)
    assert "".join(calls) == 3 * "aaabbb"
    assert {name: len(seconds) for name, seconds in timing.seconds.items()} == {"a": 2, "b": 2}


def test_timing_compares_round_by_round():
    summary = Timing({"ours": [1.0, 2.0, 1.0], "theirs": [3.0, 4.0, 4.0]}, samples=8).summary()
    assert summary["samples_per_second"] == {"ours": 8.0, "theirs": 2.0}
    assert summary["ratio"] == 3.0 and summary["ratio_range"] == [2.0, 4.0]


def test_timing_compares_with_the_fastest_of_the_others():
    seconds = {"ours": [1.0, 1.0], "slow": [9.0, 9.0], "fast": [2.0, 2.0]}
    assert Timing(seconds, samples=8).summary()["ratio"] == 2.0


def test_bench_image_measures_overlay_and_step(tmp_path, capfd):
    flags = ["--num", "8", "--rounds", "1", "--calls", "1"]
    assert main(["bench", "image", *flags]) == 0
    err = capfd.readouterr().err
    found = json.loads(err[err.index("{\n") :])
    others = {"overlay": ["torch"], "step": ["torch", "torch_reading_ahead"]}
    for what, names in others.items():
        names = names if "torch" in sys.modules else []
        assert list(found[what]["samples_per_second"]) == ["jaxdefense", *names]
    assert found["size"] == "demo" and found["clean"] == found["poisoned"] == 8


def test_bench_text_measures_the_step(capfd):
    flags = ["--num", "16", "--people", "3", "--rounds", "1", "--calls", "1"]
    assert main(["bench", "text", *flags]) == 0
    err = capfd.readouterr().err
    found = json.loads(err[err.index("{\n") :])
    names = ["jaxdefense", "torch"] if "torch" in sys.modules else ["jaxdefense"]
    assert list(found["step"]["samples_per_second"]) == names
    assert 0 < found["filled"] <= 1 and found["tokens_per_second"] > 0
    assert found["step"]["share"] > 0 and found["rows"] * found["row_length"] < 32 * 77


@pytest.mark.parametrize("flags", [["--size", "huge"], ["--num", "0"], ["--captions", "nowhere"]])
def test_bench_text_refuses(capsys, flags):
    assert main(["bench", "text", *flags]) == 2
    assert flags[1] in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--size", "huge"], ["--num", "0"], ["--images", "nowhere"]])
def test_bench_image_refuses(capsys, flags):
    assert main(["bench", "image", *flags]) == 2
    assert flags[1] in capsys.readouterr().err


def test_pillow_overlay_changes_only_what_the_face_covers():
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (64, 64), "white")
    face = Image.fromarray(rng.integers(0, 200, (64, 64, 3)).astype(np.uint8))
    for _ in range(20):
        changed = np.asarray(bench.pillow_overlay(image, face, rng, OverlayConfig())) != 255
        rows, columns = (changed.any(-1).any(axis).nonzero()[0] for axis in (1, 0))
        assert 15 <= np.ptp(rows) + 1 <= 46 and 15 <= np.ptp(columns) + 1 <= 46


def test_exponent_is_that_of_the_larger_half():
    sizes = [1, 10, 100, 1_000, 10_000]
    assert exponent(sizes, [0.1 + size**1.5 for size in sizes]) == 1.5
    assert exponent(sizes, [7.0] * 5) == 0


def test_bench_scale_measures_each_size_in_a_process_of_its_own(tmp_path, capfd):
    assert (
        main(["bench", "scale", "candidates", "--sizes", "8,32", "--plot", str(tmp_path / "x.png")])
        == 0
    )
    err = capfd.readouterr().err
    found = json.loads(err[err.index("{\n") :])
    assert [point["candidates"] for point in found["points"]] == [8, 32]
    assert set(found["exponents"]) == {"attack_s", "peak_mb"}
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 300


@pytest.mark.parametrize("flags", [["names"], ["batch", "--sizes", "4,2"]])
def test_bench_scale_refuses(capsys, flags):
    assert main(["bench", "scale", *flags]) == 2
    assert flags[-1] in capsys.readouterr().err


def test_the_image_defense_waits_for_no_library_it_does_not_use():
    code = (
        "import sys, jaxdefense.defense.image;"
        "print(*{'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
