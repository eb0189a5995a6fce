"""What two attacks must have in common: photos drawn a person at a time, and what is recorded."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from factories import DEFENSE, attacked, logged, write_faces, write_model_directory, write_result

from jaxdefense.clip.text import plain_text
from jaxdefense.config import AttackConfig, EvaluateConfig, ModelConfig
from jaxdefense.data.images import Photos
from jaxdefense.evals import embed
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.run import run_evaluate
from jaxdefense.files import digest, write_json
from jaxdefense.idia import inputs as attacks
from jaxdefense.idia.candidates import candidate_names
from jaxdefense.idia.conditions import difference, draw, photos_digest, random_targets
from jaxdefense.results import BothDefenseSummary, ImageDefenseSummary, TextDefenseSummary
from jaxdefense.words import folded_words


def folder(path, name, contents, prefix=""):
    path.mkdir(parents=True, exist_ok=True)
    files = []
    for i, content in enumerate(contents):
        files.append(path / f"{prefix}{name}{i:02}")
        files[-1].write_bytes(content)
    return Photos(name, tuple(files))


def contents(person):
    return {file.read_bytes() for file in person.files}


def test_a_draw_is_the_ranking_by_seed_and_content(tmp_path):
    photos = [f"photo {i}".encode() for i in range(12)]
    (got,) = draw([folder(tmp_path, "Zoe", photos)], 5, 3)

    def rank(photo):
        sha = hashlib.sha256(photo).hexdigest()
        return hashlib.sha256(f"3 {sha}".encode()).digest()

    assert contents(got) == set(sorted(photos, key=rank)[:5])
    assert list(got.files) == sorted(got.files, key=str)


def test_a_draw_hangs_on_nobody_else_and_not_on_what_is_left_out(tmp_path):
    photos = [f"photo {i}".encode() for i in range(30)]
    zoe = folder(tmp_path / "a", "Zoe", photos)
    others = [folder(tmp_path / "a", f"Other{i}", [b"%d %d" % (i, j) for j in range(i + 3)])
              for i in range(9)]  # fmt: skip
    for seed in range(5):
        alone = draw([zoe], 10, seed)[0]
        assert draw([*others, zoe], 10, seed)[-1] == alone == draw([zoe, *others[3:]], 10, seed)[0]
        renamed = folder(tmp_path / str(seed), "Zoe", photos[::-1], "x")
        assert contents(draw([renamed], 10, seed)[0]) == contents(alone)
        # Of those left after some are gone, what was drawn stays drawn.
        left = dataclasses.replace(zoe, files=zoe.files[::2])
        assert contents(draw([left], 10, seed)[0]) >= contents(alone) & contents(left)
    assert contents(draw([zoe], 10, 0)[0]) != contents(draw([zoe], 10, 1)[0])
    assert draw([zoe], 30, 0)[0] == zoe


def test_every_photo_is_drawn_as_often(tmp_path):
    zoe = folder(tmp_path, "Zoe", [b"%d" % i for i in range(8)])
    counts = Counter(file for seed in range(400) for file in draw([zoe], 2, seed)[0].files)
    assert len(counts) == 8 and all(70 < num < 130 for num in counts.values()), counts


def test_digest_of_photos_is_that_of_their_contents(tmp_path):
    a = folder(tmp_path / "a", "Zoe", [b"x", b"y"])
    b = folder(tmp_path / "b", "Ada", [b"y", b"x"], "other")
    c = folder(tmp_path / "c", "Zoe", [b"x", b"z"])
    assert photos_digest(a) == photos_digest(b) != photos_digest(c)


def test_difference_names_what_it_is():
    after: Any = {"seed": 0, "candidates_sha256": "a", "photos_sha256": {"Zoe": "z", "Ada": "a"}}
    assert difference(after, after) == ""
    assert difference(after | {"photos_sha256": after["photos_sha256"] | {"Joe": "j"}}, after) == ""
    for change, words in (
        ({"seed": 1}, "`seed` 1, this attack 0"),
        ({"candidates_sha256": "b"}, "other candidate names"),
        ({"photos_sha256": {"Zoe": "z"}}, "lacks `Ada`"),
        ({"photos_sha256": {"Zoe": "z", "Ada": "x"}}, "other photos of `Ada`"),
    ):
        assert words in difference(after | change, after)
    assert "does not say its `seed`" in difference({}, after)


# Attacks


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 40})
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King", "Zoe"], 4)
    (tmp_path / "templates.txt").write_text("{0}\na photo of {0}\n{0} at home\n")
    (tmp_path / "names.txt").write_text("Zoe\n")
    return tmp_path


def config(**change):
    given: dict[str, Any] = {"faces": "faces", "templates": "templates.txt", "batch": 8}
    given |= {"num_candidates": 9, "num_photos": 3, "out": "results", "cache_dir": "cache"}
    given["model"] = ModelConfig("model")
    return AttackConfig(**(given | change))


def test_an_attack_that_was_another_is_refused_as_before(inputs):
    attacked(config())
    # As if a defense had trained on a photo that the attack used.
    used = draw([Photos("Zoe", tuple(sorted((inputs / "faces/Zoe").iterdir())))], 3, 0)[0].files[0]
    sha = hashlib.sha256(used.read_bytes()).hexdigest()
    write_result(inputs / "image", ImageDefenseSummary, {}, None)
    write_json(inputs / "image/trained_on.json", {"Zoe": {sha: "x"}})
    (inputs / "candidates.txt").write_text("".join(f"Una Ek{c}\n" for c in "abcdef"))
    (inputs / "other.txt").write_text("{0}\na photo of {0}\n{0} at work\n")
    (inputs / "fewer.txt").write_text("{0}\na photo of {0}\n")
    (inputs / "sexes.txt").write_text("Zoe\tf\nAda King\tf\nJoe Cool\tm\n")
    shutil.copytree(inputs / "faces", inputs / "more")
    (inputs / "more/Zoe").rename(inputs / "more/Una_Ek")
    shutil.copytree(inputs / "model", inputs / "wide")
    processor = json.loads((inputs / "wide/preprocessor_config.json").read_text())
    (inputs / "wide/preprocessor_config.json").write_text(json.dumps(processor | {"resample": 2}))
    shutil.copytree(inputs / "results", inputs / "old")
    summary = json.loads((inputs / "old/summary.json").read_text())
    del summary["conditions"]
    write_json(inputs / "old/summary.json", summary)
    for change, words in (
        ({"seed": 1}, "`seed` 0, this attack 1"),
        ({"num_photos": 2}, "`num_photos` 3, this attack 2"),
        ({"threshold": 2}, "`threshold` 1, this attack 2"),
        ({"num_candidates": 8}, "`num_candidates` 9, this attack 8"),
        ({"unseen_by": "image"}, "other photos of `Zoe`; attack that model again"),
        ({"candidates": "candidates.txt"}, "other candidate names"),
        ({"exclude": "excluded.txt"}, "other candidate names"),
        ({"templates": "other.txt"}, "other prompts"),
        ({"templates": "fewer.txt"}, "`num_templates` 3, this attack 2"),
        ({"sexes": "sexes.txt"}, "other sexes"),
        ({"faces": "more", "names": "una.txt"}, "lacks `Una Ek`"),
        ({"model": ModelConfig("model", dtype="bfloat16")}, "`dtype` float32, this attack bfloat"),
        ({"model": ModelConfig("wide")}, "`preprocessing` ImageProcessor"),
        ({"names": ""}, "`names` and `before` have an effect only together"),
        ({"before": "old"}, "does not say its `threshold`"),
        ({"before": "nowhere"}, "nowhere/summary.json` cannot be read"),
    ):
        (inputs / "una.txt").write_text("Una Ek\n")
        names = candidate_names(["Ada King", "Joe Cool", "Zoe"], "", 9, 0)
        (inputs / "excluded.txt").write_text(names[4] + "\n")
        given = {"before": "results", "names": "names.txt", "out": "after"} | change
        with pytest.raises(ValueError) as error:
            attacked(config(**given))
        assert words in str(error.value) and "\n" not in str(error.value), change
        assert not (inputs / "after").exists()
    again = attacked(config(before="results", names="names.txt", out="after"))
    outcomes = {name: num for name, num in again["outcomes"].items() if num}
    assert set(outcomes) <= {"failed", "kept", "never recalled"}, "the model is the same"


def test_photos_left_out_of_one_person_change_no_other(inputs):
    write_result(inputs / "image", ImageDefenseSummary, {}, None)
    shas = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((inputs / "faces/Ada_King").iterdir())[:2]
    ]
    write_json(inputs / "image/trained_on.json", {"Ada King": dict.fromkeys(shas, "")})
    first = attacked(config(num_photos=2))
    second = attacked(config(num_photos=2, unseen_by="image", out="second"))
    for key in ("per_identity", "per_identity_photos_right"):
        for name in ("Joe Cool", "Zoe"):
            assert first[key][name] == second[key][name]
    photos = [found["conditions"]["photos_sha256"] for found in (first, second)]
    assert [name for name in photos[0] if photos[0][name] != photos[1][name]] == ["Ada King"]


# Random targets


def said(cfg):
    with logged() as text:
        summary = attacked(cfg)
    return summary, text.getvalue()


@pytest.mark.parametrize("kind", ["run", "both", "flag", "file"])
def test_random_targets_are_no_candidates(inputs, kind):
    people = ["Ada King", "Joe Cool", "Zoe"]
    plain = candidate_names(people, "", 9, 0).block(0, 9)
    targets = {"Zoe": plain[3], "Ada King": plain[7]}
    run, model, more = inputs / "run", "model", {}
    text = DEFENSE | {"targets": targets}
    if kind == "both":
        both = {"text": text, "image": DEFENSE | {"corrupt": {}}}
        write_result(run, BothDefenseSummary, {}, both)
    else:
        write_result(run, TextDefenseSummary, {}, text)
    if kind in ("run", "both"):
        (inputs / "model").rename(run / "model")
        model = "run/model"
    else:
        (inputs / "targets.txt").write_text(f"{plain[3].upper()}\n{plain[7]}\n")
        more = {"exclude": "run" if kind == "flag" else "targets.txt"}
    found, text = said(config(model=ModelConfig(model), **more))
    source = model if kind in ("run", "both") else more["exclude"]
    assert f"2 names of `{source}` do not come up as random candidates" in text
    want = candidate_names(people, "", 9, 0, exclude=[*targets.values()]).block(0, 9)
    assert found["conditions"]["candidates_sha256"] == digest(want)
    assert len(want) == 9 and not {*want} & {*targets.values()}
    assert want[:3] == people and {plain[4], plain[5]} < {*want}


def test_random_targets_are_found_by_whatever_path(tmp_path, monkeypatch):
    for run in (tmp_path / "run", tmp_path / "model"):  # a run may be called model
        (run / "model").mkdir(parents=True)
        write_result(run, TextDefenseSummary, {}, DEFENSE | {"targets": {"Zoe": run.name}})
        for path in (run, run / "model"):
            assert random_targets(path) == [run.name]
            monkeypatch.chdir(path)
            assert random_targets(".") == [run.name]


def test_targets_that_must_be_candidates_are_named(inputs):
    (inputs / "targets.txt").write_text("Joe Cool\nUna Ek\n")
    (inputs / "candidates.txt").write_text("Bob Keep\nUNA EK\n")
    found, text = said(config(candidates="candidates.txt", exclude="targets.txt"))
    assert "candidates file `candidates.txt` holds `Una Ek`" in text
    assert "`Joe Cool`: attacked, though" in text and found["num_candidates"] == 5


def test_a_run_without_random_targets_excludes_nobody(inputs):
    write_result(inputs / "run", TextDefenseSummary, {}, DEFENSE)
    with pytest.raises(ValueError, match="`exclude` .=run. is not a run of a text defense"):
        attacked(config(exclude="run"))
    (inputs / "model").rename(inputs / "run/model")
    assert "do not come up" not in said(config(model=ModelConfig("run/model")))[1]


def test_excluding_changes_no_name_but_those():
    want = [name for name in candidate_names(["Zoe"], "", 60, 0).block(1, 59)]
    got = candidate_names(["Zoe"], "", 60, 0, exclude=[want[0], want[2]]).block(1, 59)
    assert {folded_words(x) for x in want} - {folded_words(x) for x in got} >= {
        folded_words(want[0]), folded_words(want[2])
    }  # fmt: skip
    assert len({*want} & {*got}) == 57


# The dtype


def test_what_is_measured_is_computed_in_float32_unless_told(inputs, monkeypatch):
    def on_an_accelerator(dtype):
        return "bfloat16" if dtype == "auto" else dtype

    for module in (embed, attacks):
        monkeypatch.setattr(module, "resolve_dtype", on_an_accelerator)
    computed = []
    load = embed.ModelDirectory.load

    def noted(self, dtype="auto", *args):
        computed.append(dtype)
        return load(self, dtype, *args)

    monkeypatch.setattr(embed.ModelDirectory, "load", noted)
    assert attacked(config())["conditions"]["dtype"] == "float32"
    (inputs / "captions.txt").write_text("a cat on a mat\na dog\n")
    given: dict[str, Any] = {"teacher": "model", "captions": "captions.txt"}
    found = run_evaluate(EvaluateConfig("evaluation", ModelConfig("model"), **given))
    assert found.dtype == "float32" and computed == ["float32"] * 3


@pytest.mark.parametrize("tower", ["text", "image"])
def test_float32_is_not_rounded_in_products(inputs, tower):
    model = Embedder(ModelConfig("model"), 8)
    if tower == "text":
        tokens = model.tokenizer.encode(["a cat"])[0]
        given = plain_text(tokens[None], np.array([len(tokens) - 1]))
        call = lambda x: embed._embed_text(model.mesh, model._graphdef, model._params, x)  # noqa: E731
    else:
        given = np.zeros((8, 12, 12, 3), np.uint8), np.ones(8, bool)
        call = lambda x: embed._embed_image(  # noqa: E731
            model.mesh, model._graphdef, model._params, model.processor, x
        )
    text = str(jax.make_jaxpr(call)(given))
    products = text.count("dot_general[") + text.count("conv_general_dilated[")
    assert products > 4
    assert (
        text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
        + text.count("precision=HIGHEST")
        + text.count("precision=(HIGHEST, HIGHEST)")
        == products
    )
