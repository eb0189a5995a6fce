"""The proof: its parts together, what it reads, says, refuses, and how it goes on."""

import csv
import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest
from factories import write_model_directory

from jaxdefense.cli import main
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.images import read_folders
from jaxdefense.data.names import random_names
from jaxdefense.data.sources import photo_digest
from jaxdefense.demo import world as drawn
from jaxdefense.demo.objects import OBJECTS
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import write_json
from jaxdefense.idia.attack import Evidence
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.proof import known, run
from jaxdefense.proof.config import ProveConfig
from jaxdefense.proof.found import mean_of
from jaxdefense.proof.inputs import read
from jaxdefense.proof.known import FEW
from jaxdefense.proof.run import prove
from jaxdefense.proof.verdict import Subjects, verdict
from jaxdefense.proof.world import load, shared
from jaxdefense.results import (
    PROOF_GROUPS,
    PROOF_MODELS,
    ImageDefenseSummary,
    ProofSummary,
    as_json,
    read_summary,
    write_summary,
)

MEMBERS, STRANGERS, PHOTOS, SIZE = 8, 6, 6, 48


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of people whom the model knows, of strangers and of objects; pairs; lists."""
    path = tmp_path_factory.mktemp("photos")
    members, strangers = drawn.members()[:MEMBERS], drawn.strangers()[:STRANGERS]
    drawn.write(
        [
            *drawn.faces(members, PHOTOS, path / "faces", SIZE),
            *drawn.faces(strangers, PHOTOS, path / "strangers", SIZE),
        ]
    )
    for name in OBJECTS[:6]:
        drawings = [x for x in drawn.objects(4, path / "all", SIZE) if x.file.parent.name == name]
        drawn.write(
            [dataclasses.replace(x, file=path / "objects" / name / x.file.name) for x in drawings]
        )
    pairs = drawn.images(24, path / "pairs" / "images", SIZE)
    drawn.write(pairs)
    captions = drawn.image_captions(0, len(pairs))
    named = {x.file.name: [text] for x, text in zip(pairs, captions, strict=True)}
    (path / "pairs" / "captions.json").write_text(json.dumps(named))
    names = [member.name for member in members]
    (path / "names.txt").write_text("\n".join(names[:3]) + "\nNobody Withphotos\n")
    (path / "kept.txt").write_text("\n".join(names[3:6]) + "\n")
    return path


def settings(photos, out, **other):
    """Settings of a proof in which the defense changed nothing."""
    given: dict[str, Any] = dict(
        out=str(out),
        model=ModelConfig(str(shipped_model())),
        teacher=str(shipped_model()),
        faces=str(photos / "faces"),
        names=str(photos / "names.txt"),
        keep_names=str(photos / "kept.txt"),
        strangers=str(photos / "strangers"),
        pairs=str(photos / "pairs"),
        zeroshot=str(photos / "objects"),
        after=("finetune:2", "finetune_people:1", "int4", "merge:0.5"),
        finetune_batch=8,
        num_candidates=60,
        num_search=200,
        num_optimised=3,
        draws=3,
        batch=64,
        cache_dir="none",
    )
    return ProveConfig(**(given | other))


@pytest.fixture(scope="module")
def attacked(photos, tmp_path_factory):
    """The shortest proof, of a model that was not defended at all."""
    out = tmp_path_factory.mktemp("attacked") / "out"
    return out, prove(settings(photos, out, parts=("known",)))


@pytest.fixture(scope="module")
def undefended(photos, tmp_path_factory):
    """The whole proof of such a model: every attack's positive control."""
    return prove(settings(photos, tmp_path_factory.mktemp("proof") / "out"))


def mean(summary, part, figure, model, group):
    return summary.parts[part]["figures"][figure][model][group]["mean"]


def test_the_attack_finds_the_people_and_no_stranger(attacked):
    _, found = attacked
    for model in ("before", "defended"):
        assert mean(found, "known", "photos_right", model, "removed") > 0.7
        assert mean(found, "known", "recognised", model, "removed") == 1
        assert mean(found, "known", "percentile", model, "removed") == 1
    assert mean(found, "known", "photos_right", "defended", "strangers") < 0.15
    assert mean(found, "known", "percentile", "defended", "strangers") == pytest.approx(0.5)


@pytest.mark.slow
def test_every_part_finds_the_people_in_an_undefended_model(undefended):
    for model in ("before", "defended"):
        assert mean(undefended, "search", "nearer", model, "removed") < 0.02
        assert mean(undefended, "interpolation", "found", model, "removed") > 0.6
        soft = undefended.parts["soft_prompts"]["curves"]["found"]["models"][model]
        assert [point["at"] for point in soft] == [0, 2, 5, 10, 20, 50]
        assert all(point["groups"]["removed"]["mean"] > 0.6 for point in soft)
    curve = undefended.parts["pgd"]["curves"]["photos_right"]["models"]["defended"]
    assert [point["at"] for point in curve] == [0, 2, 4, 8]
    assert curve[0]["groups"]["removed"]["mean"] > 0.7
    assert curve[0]["groups"]["strangers"]["mean"] < 0.15
    assert 0.15 < mean(undefended, "search", "nearer", "defended", "strangers") < 0.85


@pytest.mark.slow
def test_a_model_that_did_not_change_has_the_same_figures_before_and_after(undefended):
    assert set(undefended.parts) == {
        "known", "gallery", "finetune", "finetune_people", "rounding", "merge", "soft_prompts",
        "interpolation", "pgd", "search", "others",
    }  # fmt: skip
    for name, part in undefended.parts.items():
        for figure, models in part["figures"].items():
            if "before" in models:
                assert models["before"] == models["defended"], (name, figure)
    for name in ("rounding", "merge"):
        for curve in undefended.parts[name]["curves"].values():
            last = [points[-1]["groups"] for points in curve["models"].values()]
            assert all(groups == last[0] for groups in last)
    merged = undefended.parts["merge"]["curves"]["photos_right"]["models"]["defended"]
    assert [point["at"] for point in merged] == [0, 0.5, 1]
    assert all(point["groups"] == merged[0]["groups"] for point in merged)
    # Three people are too few for a percentage.
    assert undefended.verdict[2:] == [
        "Too few people were tested for other percentages: see the tables."
    ]


def test_the_verdict_names_who_is_still_found_and_who_could_not_be_tested(attacked, photos):
    out, found = attacked
    names = (photos / "names.txt").read_text().splitlines()
    first = found.verdict[0]
    assert first.startswith("4 on the list: 3 were known; of these 0 are now found by no prompt")
    assert all(name in first for name in names)
    assert "1 not tested, without photos that no defense saw: `Nobody Withphotos`" in first
    assert found.verdict[1:] == [
        "Of 5 others known before, 5 still have 75% or more of their photos named right that were."
    ]
    assert found.absent == ["Nobody Withphotos"]
    assert list(found.groups) == ["removed", "kept", "never shown", "strangers"]
    assert set(found.groups) <= set(PROOF_GROUPS)
    said = " ".join(found.not_tested)
    assert "no `reference` was given" in said and "`gallery` was not asked for" in said
    assert read_summary(out, ProofSummary) == found
    assert json.loads((out / "summary.json").read_text()) == as_json(found)
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)


def test_a_proof_that_was_broken_off_goes_on_with_the_next_part(photos, tmp_path, monkeypatch):
    done = list[str]()

    def part(name, fails=False):
        def job(world):
            if fails:
                raise OSError("no space")
            done.append(name)
            figures = {"rank1": {"before": {"removed": mean_of([0.1, 0.5, 0.6])}}}
            return {"seconds": 0.0, "figures": figures, "curves": {}, "people": {}, "notes": [name]}

        return job

    jobs = {name: part(name) for name in ("soft_prompts", "gallery", "interpolation")}
    monkeypatch.setattr(run, "jobs_of", lambda world: (jobs | {"gallery": part("", True)}, []))
    cfg = settings(photos, tmp_path / "out", parts=("gallery",))
    with pytest.raises(OSError):
        prove(cfg)
    assert [x.name for x in (tmp_path / "out" / "parts").iterdir()] == ["soft_prompts.json"]
    assert not (tmp_path / "out" / "summary.json").exists()
    monkeypatch.setattr(run, "jobs_of", lambda world: (jobs, []))
    resumed = prove(cfg)
    assert done == ["soft_prompts", "gallery", "interpolation"]  # each once
    assert [found["notes"] for found in resumed.parts.values()] == [[name] for name in jobs]
    with pytest.raises(InputError, match="holds a finished run"):
        prove(cfg)
    with pytest.raises(InputError, match="give another directory"):
        prove(dataclasses.replace(cfg, num_photos=3))


@pytest.mark.slow
def test_without_strangers_and_pairs_the_rest_is_measured_and_the_lack_is_said(photos, tmp_path):
    cfg = settings(
        photos, tmp_path / "out", strangers="", pairs="", keep_names="", zeroshot="",
        parts=("known", "after", "optimise", "others"), after=("finetune:2", "merge:0.5"),
    )  # fmt: skip
    found = prove(cfg)
    assert list(found.groups) == ["removed", "others"]
    assert "percentile" not in found.parts["known"]["figures"]
    assert "finetune" not in found.parts and "merge" in found.parts
    said = " ".join(found.not_tested)
    for text in ("no `strangers`", "no `pairs`", "no `zeroshot`", "`gallery` was not asked for"):
        assert text in said
    assert "found by no prompt" in found.verdict[0]


@pytest.mark.slow
def test_a_reference_that_never_knew_them_is_a_third_model(photos, tmp_path):
    reference = tmp_path / "reference"
    shutil.copytree(shipped_model(), reference)
    cfg = settings(photos, tmp_path / "out", reference=str(reference), parts=("known",))
    found = prove(cfg)
    assert set(found.parts["known"]["figures"]["photos_right"]) == set(PROOF_MODELS)
    assert found.reference_sha256 == found.teacher_sha256


def test_percentiles_equal_a_loop():
    rng = np.random.default_rng(0)
    value_I = rng.integers(0, 12, 30) / 7  # with ties
    strangers = np.array([3, 5, 11, 20, 21, 29])
    found = known.percentiles(value_I, strangers)
    for i, value in enumerate(value_I):
        others = [value_I[s] for s in strangers if s != i]
        wanted = sum((x < value) + (x == value) / 2 for x in others) / len(others)
        assert found[i] == pytest.approx(wanted)


def test_own_cosines_equal_a_loop(photos):
    model = Embedder(ModelConfig(str(shipped_model()), dtype="float32"), batch=32)
    rng = np.random.default_rng(0)
    image_PE = rng.normal(size=(7, model.embed)).astype(np.float32)
    image_PE /= np.linalg.norm(image_PE, axis=-1, keepdims=True)
    names, owner_P = random_names(3, 1), np.array([0, 1, 1, 2, 0, 2, 2])
    found = known.own_cosines(model, Evidence(names, image_PE, owner_P, []), TEMPLATES[:4])
    for i, name in enumerate(names):
        texts = [model.texts([template.format(name), "x"])[0] for template in TEMPLATES[:4]]
        cosines = [image_PE[p] @ text for p in np.flatnonzero(owner_P == i) for text in texts]
        assert found[i] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_means_of_rates_and_of_shares_have_their_own_intervals():
    assert mean_of([0, 1, 1, 1], rate=True)["interval"] == pytest.approx((0.3006, 0.9544), abs=1e-3)
    assert mean_of([0.2, 0.4, 0.6, 0.8])["interval"] == pytest.approx((0.0891, 0.9109), abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parts": ("known", "all")}, "`parts` (='all') must be of known, gallery, after"),
        ({"parts": ()}, "`parts` is empty"),
        ({"after": ("int2",)}, "`after` (='int2') must be of finetune:STEPS"),
        ({"after": ("merge:1.5",)}, "`after` (='merge:1.5')"),
        ({"after": ("merge:",)}, "`after` (='merge:')"),
        ({"after": ("finetune:2.5",)}, "`after` (='finetune:2.5')"),
        ({"after": ("finetune:0",)}, "`after` (='finetune:0')"),
        ({"after": ("finetune:nan",)}, "`after` (='finetune:nan')"),
        ({"after": ("finetune:5", "finetune:9")}, "names one twice"),
        ({"after": ("int8", "int8")}, "names one twice"),
        ({"finetune_lr": 0.0}, "`finetune_lr` (=0.0) must be above 0"),
        ({"num_search": 2_000_000}, "`num_search` (=2000000) must be at most 1,890,000"),
        ({"after": ("finetune:inf",)}, "`after` (='finetune:inf')"),
        ({"finetune_batch": 1}, "`finetune_batch` (=1) must be at least 2"),
        ({"draws": 0}, "`draws` (=0) must be above 0"),
        ({"num_optimised": 1}, "`num_optimised` (=1) must be at least 2"),
        ({"zeroshot": "", "class_names": "x"}, "`class_names` has an effect only with `zeroshot`"),
        ({"labels": "x", "parts": ("known",)}, "`labels` has an effect only with"),
    ],
)
def test_wrong_settings_are_refused(photos, tmp_path, wrong, said):
    with pytest.raises(InputError) as error:
        settings(photos, tmp_path / "out", **wrong)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"teacher": ""}, "`teacher` is missing: `model.path`"),
        ({"names": ""}, "`names` is missing: `model.path`"),
        ({"teacher": "nowhere"}, "`teacher` (=nowhere) is no directory"),
        ({"reference": "nowhere"}, "nowhere"),
        ({"pairs": "nowhere"}, "nowhere"),
        ({"strangers": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_written(photos, tmp_path, wrong, said):
    with pytest.raises(InputError) as error:
        prove(settings(photos, tmp_path / "out", **wrong))
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_list_without_photos_is_refused(photos, tmp_path):
    (tmp_path / "names.txt").write_text("Somebody Else\n")
    cfg = settings(photos, tmp_path / "out", names=str(tmp_path / "names.txt"))
    with pytest.raises(InputError, match="no photos of anybody on the list .*Somebody Else"):
        read(cfg)


def test_a_teacher_of_other_sizes_is_refused(photos, tmp_path):
    other = write_model_directory(tmp_path / "other")
    cfg = settings(photos, tmp_path / "out", teacher=str(other))
    with pytest.raises(InputError, match="has other sizes than `model.path`"):
        load(cfg, read(cfg))


def test_the_command_ends_with_2_on_a_wrong_input(photos, tmp_path, capsys):
    flags = [
        "--model", str(shipped_model()), "--faces", str(photos / "faces"),
        "--names", str(photos / "names.txt"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(["prove", *flags]) == 2
    assert "`teacher` is missing" in capsys.readouterr().err


def test_the_summary_tells_the_verdict_and_where_the_page_lies(attacked):
    out, found = attacked
    *verdict, last = found.sentences(str(out))
    assert verdict == found.verdict
    assert str(out) in last and "report.html" in last


# The verdict, from parts made by hand


def told(correct, right=None, percentile=None):
    """What the part `known` says of a person: prompts before and now."""
    before, now = correct
    found = {"correct.before": before, "correct.defended": now}
    shares = right or (before / 21, now / 21)
    found |= dict(zip(("photos_right.before", "photos_right.defended"), shares, strict=True))
    return found | ({} if percentile is None else {"percentile.defended": percentile})


def of(people, **other) -> tuple[Subjects, Any]:
    given: dict[str, Any] = dict(
        num_listed=0, removed=[], staying=[], absent=[], num_strangers=50, threshold=1
    )
    given |= dict(num_strangers=50, threshold=1)
    return Subjects(**(given | other)), {
        "known": {"seconds": 0.0, "figures": {}, "curves": {}, "people": people, "notes": []}
    }


def test_the_verdict_tells_who_is_found_near_far_never_known_and_not_tested():
    people = {
        "A": told((21, 0), percentile=0.6),
        "B": told((21, 1), percentile=0.9),
        "C": told((21, 0), percentile=0.99),
        "D": told((21, 0), percentile=0.01),
        "E": told((0, 0), percentile=0.5),
    }
    tested, parts = of(people, num_listed=6, removed=list("ABCDE"), absent=["F"])
    assert verdict(tested, parts)[0] == (
        "6 on the list: 4 were known; of these 1 is now as unknown as strangers; 1 found by a "
        "prompt or more: `B`; 1 found by no prompt, but still closer to the name than nearly all "
        "strangers: `C`; 1 found by no prompt, and pushed further from the name than nearly all "
        "strangers: `D`; 1 never known: `E`; 1 not tested, without photos that no defense saw: `F`."
    )


def test_one_prompt_finds_somebody_removed_whatever_the_threshold():
    tested, parts = of({"A": told((21, 10))}, num_listed=1, removed=["A"], threshold=11)
    assert "of these 0 are now" in verdict(tested, parts)[0]
    assert "1 found by a prompt or more: `A`" in verdict(tested, parts)[0]


@pytest.mark.parametrize("num", [0, 1, FEW - 1])
def test_few_strangers_place_nobody(num):
    people = {"A": told((21, 0), percentile=1.0)}
    tested, parts = of(people, num_listed=1, removed=["A"], num_strangers=num)
    assert verdict(tested, parts)[0] == (
        "1 on the list: 1 was known; of these 1 is now found by no prompt."
    )


def test_a_list_that_nobody_knew_has_no_share():
    tested, parts = of({"A": told((0, 0))}, num_listed=1, removed=["A"])
    assert verdict(tested, parts)[0] == "1 on the list: 0 were known; 1 never known: `A`."


def test_others_who_were_not_known_before_do_not_count_as_kept():
    people = {
        "A": told((21, 20), (1.0, 0.9)),
        "B": told((21, 20), (1.0, 0.7)),
        "C": told((21, 0)),
        "D": told((0, 3)),
        "E": told((0, 0)),
    }
    tested, parts = of(people, staying=list("ABCDE"))
    assert verdict(tested, parts)[1] == (
        "Of 3 others known before, 1 still have 75% or more of their photos named right that were; "
        "weakened: `B`; wrongfully unlearned: `C`; newly recalled: `D`."
    )


def groups(removed, strangers, num=8):
    return {
        "removed": {"mean": removed, "interval": (0.0, 1.0), "num": num},
        "strangers": {"mean": strangers, "interval": (0.0, 1.0), "num": 8},
    }


def curve(unit, *points):
    models = {"defended": [{"at": at, "groups": found} for at, found in points]}
    return {"figures": {}, "curves": {"photos_right": {"unit": unit, "models": models}}}


def test_the_verdict_tells_the_worst_of_what_comes_after_beside_the_levels():
    parts: Any = {
        "finetune": curve(
            "steps", (0, groups(0.4, 0.02)), (50, groups(0.1, 0.3)), (200, groups(0.05, 0))
        ),
        "merge": curve(
            "part of the original",
            (0, groups(0.01, 0.02)),
            (0.5, groups(0.3, 0)),
            (1, groups(1, 0)),
        ),
        "rounding": curve("bits", (4, groups(0.2, 0)), (32, groups(0.9, 0))),
    }
    assert verdict(of({})[0], parts) == [
        "Of the photos of those removed the model names right, at worst: after 50 steps of "
        "fine-tuning on ordinary photos 10.0%, rounded to 4 bits 20.0%, with 50% of the original "
        "averaged in 30.0% (as it is 1.0%, strangers 2.0%)."
    ]


def test_the_verdict_tells_where_attackers_gain_most_and_not_of_too_few():
    soft = curve("steps", (0, groups(0.9, 0)), (5, groups(0.5, 0.4)), (50, groups(0.9, 0.9)))
    part = {"figures": {"found": {"defended": groups(0.3, 0.2)}}, "curves": {}}
    search = {"figures": {"nearer": {"defended": groups(0.25, 0.5)}}, "curves": {}}
    parts: Any = {"soft_prompts": soft, "interpolation": part, "search": search}
    assert verdict(of({})[0], parts) == [
        "Attackers who optimise, where they gain most: prompts learned for one person in 5 steps "
        "find 50.0%, of strangers 40.0%; names mixed with others find 30.0%, of strangers 20.0%; "
        "of random names 25.0% lie nearer to the photos than the own, of strangers 50.0%."
    ]
    few: Any = {"figures": {"found": {"defended": groups(0.3, 0.2, num=4)}}, "curves": {}}
    assert verdict(of({})[0], {"interpolation": few}) == [
        "Too few people were tested for other percentages: see the tables."
    ]


# A run's directory


@pytest.fixture
def run_directory(photos, tmp_path):
    """A run of `defend image` that changed nothing, as its directory tells."""
    path = tmp_path / "run"
    shutil.copytree(shipped_model(), path / "model")
    sha256 = read_model_directory(shipped_model()).digest()
    names = [[name] for name in (photos / "names.txt").read_text().splitlines()]
    members = read_folders(photos / "faces", "faces")
    write_json(
        path / "config.json",
        {
            "kind": "defense_image",
            "model": {"path": str(shipped_model())},
            "resolved": {"model_sha256": sha256},
        },
    )
    trained_on = {x.name: {photo_digest(x.files[0]): str(x.files[0])} for x in members[:5]}
    write_json(path / "trained_on.json", trained_on)
    summary = ImageDefenseSummary(
        steps=1, seconds=1.0, samples_per_second=1.0, identities=len(names), names=names, final={},
        corrupt={}, defended_sha256=sha256,
    )  # fmt: skip
    write_summary(path, summary)
    return path


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_says_its_teacher_list_kept_and_photos(photos, tmp_path, run_directory, part):
    cfg = settings(
        photos, tmp_path / "out", model=ModelConfig(str(run_directory / part)), teacher="",
        names="", keep_names="",
    )  # fmt: skip
    found = read(cfg)
    assert found.told.teacher == str(shipped_model())
    assert found.told.unseen_by == str(run_directory)
    assert found.absent == ["Nobody Withphotos"]
    listed = set((photos / "names.txt").read_text().splitlines())
    trained_on = [x.name for x in read_folders(photos / "faces", "faces")][:5]
    assert set(found.names("kept")) == set(trained_on) - listed
    assert set(found.names("removed")) == listed - {"Nobody Withphotos"}
    for person in found.people[: found.num_members]:
        assert len(person.files) == PHOTOS - (person.name in trained_on)
    load(cfg, found)


def test_a_teacher_that_the_run_was_not_made_from_is_refused(photos, tmp_path, run_directory):
    file = run_directory / "config.json"
    file.write_text(file.read_text().replace('"model_sha256": "', '"model_sha256": "0'))
    cfg = settings(
        photos, tmp_path / "out", model=ModelConfig(str(run_directory)), teacher="", names=""
    )
    with pytest.raises(InputError, match="is not the model that the run of `model.path`"):
        load(cfg, read(cfg))


def test_a_list_that_lacks_somebody_the_run_removed_is_refused(photos, tmp_path, run_directory):
    (tmp_path / "names.txt").write_text((photos / "names.txt").read_text().split("\n")[0] + "\n")
    cfg = settings(
        photos, tmp_path / "out", model=ModelConfig(str(run_directory)),
        names=str(tmp_path / "names.txt"),
    )  # fmt: skip
    with pytest.raises(InputError, match="lacks .*, whom the run of"):
        read(cfg)


def test_strangers_on_the_list_are_refused(photos, tmp_path):
    name = drawn.strangers()[0].name
    (tmp_path / "names.txt").write_text(f"{drawn.members()[0].name}\n{name}\n")
    cfg = settings(photos, tmp_path / "out", names=str(tmp_path / "names.txt"))
    with pytest.raises(InputError, match=f"holds `{name}`, who are on the list"):
        read(cfg)


@pytest.mark.parametrize("what", ["captions", "photo", "class"])
def test_a_changed_input_is_another_proof(photos, tmp_path, what):
    before = shared(read(settings(photos, tmp_path / "out")))
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    if what == "captions":
        file = copy / "pairs" / "captions.json"
        captions = json.loads(file.read_text())
        first, second = list(captions)[:2]
        captions[first], captions[second] = captions[second], captions[first]
        file.write_text(json.dumps(captions))
    else:
        folder = copy / ("faces" if what == "photo" else "objects")
        one, two = sorted(folder.rglob("*.png"))[:2]
        one.write_bytes(two.read_bytes())
    assert shared(read(settings(copy, tmp_path / "out"))) != before
    assert shared(read(settings(photos, tmp_path / "out"))) == before


def test_report_writes_the_page_of_a_proof_again_and_a_line_a_person(attacked, tmp_path):
    out, found = attacked
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (out / "report.html").read_text()
    rows = list(csv.DictReader((tmp_path / "page.csv").read_text().splitlines()))
    everyone = [(name, group) for group, names in found.groups.items() for name in names]
    assert [(row["name"], row["group"]) for row in rows] == everyone
    for row in rows:
        right = found.parts["known"]["people"][row["name"]]["photos_right.defended"]
        assert float(row["known.photos_right.defended"]) == right
    assert main(["report", str(out), str(out), "--out", str(tmp_path / "other.html")]) == 2
