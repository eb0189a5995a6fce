"""The ledger: sealed, checked, told; the model card; attacks recorded in it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from factories import DEFENSE, write_model_directory, write_result
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.identities import read_identities
from jaxdefense.errors import InputError
from jaxdefense.ledger.card import CARD, write_card
from jaxdefense.ledger.entries import (
    LEDGER,
    NAMES,
    Entry,
    Ledger,
    read_ledger,
    seal_of,
    with_entry,
    write_ledger,
    write_names,
)
from jaxdefense.ledger.runs import join_ledgers
from jaxdefense.results import AttackSummary, ProofSummary, TextDefenseSummary

A, B, C, D = (letter * 64 for letter in "abcd")


def entry(**given):
    usual = {
        "follows": [],
        "how": "first",
        "kind": "defense_text",
        "date": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "teacher_sha256": A,
        "start_sha256": A,
        "model_sha256": B,
        "people": 2,
        "added": 2,
        "reached": {"text": True},
    }
    return Entry(**(usual | given))


def chain(last=D):
    """Three requests: replayed, then one off the list."""
    one = with_entry([], entry())
    two = with_entry([one], entry(how="replay", start_sha256=B, model_sha256=C, people=3, added=1))
    off = {"how": "restore", "model_sha256": last, "restored": 1, "added": 0, "people": 2}
    return with_entry([two], entry(**off))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model with a ledger."""
    monkeypatch.chdir(tmp_path)
    path = write_model_directory(tmp_path / "model")
    write_ledger(path, chain(read_model_directory(path).digest()))
    return path


def test_a_ledger_comes_back_as_it_was_written(tmp_path):
    whole = chain()
    write_ledger(tmp_path, whole)
    assert read_ledger(tmp_path, D) == whole
    assert read_ledger(tmp_path / "none") is None
    assert whole.last.follows == [whole.entries[1].id] and whole.original() == A
    assert whole.teachers() == {A}
    assert len({x.id for x in whole.entries}) == 3


def spoilt(change):
    """A ledger's JSON after a change by hand."""

    def spoil(path):
        found = json.loads((path / LEDGER).read_text())
        change(found["runs"], found)
        (path / LEDGER).write_text(json.dumps(found))

    return spoil


def resealed(runs, i, **fields):
    """Change an entry, and seal it and all that follow it anew."""
    runs[i] |= fields
    for j in range(i, len(runs)):
        old, found = runs[j]["id"], Entry(**runs[j]).sealed()
        runs[j] = json.loads(json.dumps(dataclasses.asdict(found)))
        for later in runs[j + 1 :]:
            later["follows"] = [found.id if x == old else x for x in later["follows"]]


def forged(digest):
    """An attack's finding, changed after it was recorded."""
    found = {"kind": "attack", "recorded": "2026-01-02", "summary_sha256": A, "people": 2,
             "listed": 2, "found": 2, "photos_right": 0.5}  # fmt: skip
    return found | {"id": seal_of(found, digest), "found": 0}


BROKEN = {
    "a field changed": (lambda runs, _: runs[1].update(people=4), "run 2 of 3", "was changed"),
    "a digest changed": (lambda runs, _: runs[0].update(id="0" * 64), "run 1 of 3", "was changed"),
    "a run missing": (lambda runs, _: runs.pop(0), "run 1 of 2", "missing from the ledger"),
    "a circle": (
        lambda runs, _: runs[0].update(follows=[runs[2]["id"]]),
        "run 1 of 3",
        "in a circle",
    ),
    "itself": (lambda runs, _: runs[0].update(follows=[runs[0]["id"]]), "in a circle"),
    "twice": (lambda runs, _: runs.insert(1, runs[0]), "run 2 of 4", "is there twice"),
    "another teacher": (
        lambda runs, _: resealed(runs, 1, teacher_sha256="e" * 64),
        "run 2 of 3",
        "teacher eeeeeeeeeeee",
        "another model",
    ),
    "another start": (
        lambda runs, _: resealed(runs, 1, start_sha256="e" * 64),
        "began with the model eeeeeeeeeeee",
        "another model",
    ),
    "the last run cut off": (lambda runs, _: runs.pop(), "is of another model", "cccccccccccc"),
    "a first that follows": (
        lambda runs, _: resealed(runs, 1, how="first"),
        "is 'first', and yet follows 1",
    ),
    "an unknown way": (lambda runs, _: runs[0].update(how="magic"), "`runs[0].how`"),
    "a field missing": (lambda runs, _: runs[0].pop("date"), "`runs[0].date` is missing"),
    "no runs": (lambda runs, whole: whole.update(runs=[]), "schema", "`runs`"),
    "an attack's finding changed": (
        lambda runs, _: runs[2].update(proved=[forged(runs[2]["model_sha256"])]),
        "what an attack on it found was changed",
    ),
    "of a later version": (lambda runs, whole: whole.update(schema=9), "schema 1"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_ledger_is_refused_in_one_line(model, capsys, how):
    change, *words = BROKEN[how]
    spoilt(change)(model)
    assert_refused(capsys, main(["ledger", "model"]), LEDGER, *words)


def test_a_ledger_of_other_weights_or_of_no_json_is_refused(model, capsys):
    other = write_model_directory(model.parent / "other", seed=1)
    (other / LEDGER).write_bytes((model / LEDGER).read_bytes())
    assert_refused(capsys, main(["ledger", "other"]), "is of another model", "remove this one")
    (other / LEDGER).write_text("{")
    assert_refused(capsys, main(["ledger", "other"]), LEDGER, "not JSON")
    (other / LEDGER).unlink()
    assert_refused(capsys, main(["ledger", "other"]), f"has no {LEDGER}")
    # It is read before a defense, a merger or a conversion begins.
    (other / LEDGER).write_bytes((model / LEDGER).read_bytes())
    code = main(["convert", "other", "converted", "--to", "hf"])
    assert_refused(capsys, code, "is of another model")
    assert not (model.parent / "converted").exists()


def test_it_says_what_was_removed_when_and_from_what(model, capsys):
    assert main(["ledger", "model"]) == 0
    one, two, three, end = capsys.readouterr().out.splitlines()
    assert one.startswith("2026-01-02: 2 people (names, from the text encoder), from a model")
    assert "from `aaaaaaaaaaaa` to `bbbbbbbbbbbb`. Validation of names passed." in one
    assert "3 people, 1 of them new (" in two and "going on from the defended model" in two
    assert "1 person came off the list" in three and "holds together" in end
    assert main(["ledger", "model", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3


# Names


def test_names_are_in_the_run_alone_under_a_digest_that_tells_nothing(tmp_path):
    people = [["Zoë Ek", "Zoe"], ["Bo"]]
    (tmp_path / "again").mkdir()
    first = write_names(tmp_path, people)
    assert first == hashlib.sha256((tmp_path / NAMES).read_bytes()).hexdigest()
    assert first == write_names(tmp_path, people)  # it is kept
    assert first != write_names(tmp_path / "again", people)
    assert [list(x.names) for x in read_identities(tmp_path / NAMES)] == people


# The card


@pytest.mark.parametrize(
    "card", [None, b"", b"---\nlicense: mit\n---\n# A card\n", b"no end of line", b"\xff\xfe\r\n"]
)
def test_a_card_is_kept_and_amended(tmp_path, card):
    if card is not None:
        (tmp_path / CARD).write_bytes(card)
    write_card(tmp_path, chain())
    once = (tmp_path / CARD).read_bytes()
    assert once.startswith(card or b"") and once.count(b"## People removed") == 1
    # Again, in place of what it said; what others wrote below stays too.
    (tmp_path / CARD).write_bytes(once + b"below\n")
    write_card(tmp_path, Ledger(chain().entries[:1]))
    again = (tmp_path / CARD).read_bytes()
    assert again.startswith(card or b"") and again.endswith(b"below\n")
    assert again.count(b"2026-01-02") == 1 and again.count(b"## People removed") == 1
    write_card(tmp_path, chain())
    assert (tmp_path / CARD).read_bytes() == once + b"below\n"


def test_a_card_without_its_end_mark_loses_nothing(tmp_path):
    write_card(tmp_path, chain())
    text = (tmp_path / CARD).read_bytes()
    cut = text[: text.rindex(b"<!--")] + b"written since\n"
    (tmp_path / CARD).write_bytes(cut)
    for _ in range(3):
        write_card(tmp_path, chain())
        found = (tmp_path / CARD).read_bytes()
        assert found.startswith(cut) and found.count(b"## People removed") == 2


# Attacks


def attack_summary(digest, **given):
    rates = {"tpr": 0.5, "fnr": 0.5, "tpr_majority": 0.0, "photos_right": 0.3, "mean_templates": 1}
    intervals = {f"{name}_interval": [0.0, 1.0] for name in rates}
    return {
        **rates,
        **intervals,
        "curve": {"threshold": [1], "tpr": [0.5]},
        "num_identities": 3,
        "threshold": 2,
        "num_candidates": 1000,
        "num_templates": 21,
        "photos_per_identity": {"min": 1, "max": 2},
        "no_answer": 0,
        "majority": 11,
        "per_identity": {"Joe Cool": 2, "Ada": 1, "Zoe": 21},
        "per_identity_photos_right": {"Joe Cool": 0.25, "Ada": 0.0, "Zoe": 1.0},
        "removed": ["Joe Cool", "Ada"],
        "model_sha256": digest,
    } | given


def ledger_of(path, digest=""):
    found = read_ledger(path, digest)
    assert found is not None
    return found


def test_an_attack_is_recorded_in_ledger_and_card_without_names(model, capsys):
    digest = read_model_directory(model).digest()
    write_result(Path("after"), AttackSummary, {}, attack_summary(digest))
    sealed = [x.id for x in ledger_of(model, digest).entries]
    assert main(["ledger", "model", "after"]) == 0
    said = capsys.readouterr().out
    assert "on 2 people of a list that was not compared with 21 prompts among 1,000 names" in said
    assert main(["ledger", "model", "after"]) == 0  # once more is once
    found = ledger_of(model, digest)
    (proved,) = found.last.proved
    assert (proved["people"], proved["found"], proved["photos_right"]) == (2, 1, 0.125)
    sha = hashlib.sha256(Path("after/summary.json").read_bytes()).hexdigest()
    assert proved["summary_sha256"] == sha and [x.id for x in found.entries] == sealed
    card = (model / CARD).read_text()
    assert "1 recognised, 12.5% of their photos named right" in card
    for text in (card, (model / LEDGER).read_text()):
        assert not any(name in text for name in ("Joe", "Ada", "Zoe"))


def test_what_is_no_attack_on_this_model_is_not_recorded(model, capsys):
    digest = read_model_directory(model).digest()
    before = (model / LEDGER).read_bytes()
    write_result(Path("other"), AttackSummary, {}, attack_summary("e" * 64))
    nobody = attack_summary(digest)
    del nobody["removed"]
    write_result(Path("nobody"), AttackSummary, {}, nobody)
    proof = {"verdict": ["x"], "not_tested": [], "groups": {}, "parts": {}, "date": "2026-01-02",
             "model_sha256": digest, "teacher_sha256": A, "dtype": "float32"}  # fmt: skip
    write_result(Path("proof"), ProofSummary, {}, proof)
    unknown = attack_summary(digest)
    del unknown["per_identity_photos_right"]
    write_result(Path("unknown"), AttackSummary, {}, unknown)
    for given, *words in (
        ["unknown", "how many of their photos", "attack again"],
        ["other", "`other` attacked the model eeeeeeeeeeee", "attack this model"],
        ["nobody", "does not say who was removed", "--before"],
        ["proof", "lacks the part `known`"],
        ["model", "model/summary.json"],
    ):
        assert_refused(capsys, main(["ledger", "model", given]), *words)
    assert (model / LEDGER).read_bytes() == before and not (model / CARD).exists()


def test_an_attack_on_somebody_else_is_not_taken_for_one_on_the_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write_result(tmp_path / "run", TextDefenseSummary, {}, None)
    model = write_model_directory(run / "model")
    digest = read_model_directory(model).digest()
    people = {"identities": 3, "names": [["Joe Cool"], ["ada"], ["Bo"]]}
    write_result(run, TextDefenseSummary, {}, DEFENSE | people)
    for place in (run, model):
        write_ledger(place, chain(digest))
    write_result(Path("after"), AttackSummary, {}, attack_summary(digest))
    assert main(["ledger", "run", "after"]) == 0
    assert "on 2 of the 3 on the list" in capsys.readouterr().out
    assert ledger_of(run) == ledger_of(model)
    other = attack_summary(digest, removed=["Joe Cool", "Zoe"])
    write_result(Path("other"), AttackSummary, {}, other)
    code = main(["ledger", "run", "other"])
    assert_refused(capsys, code, "takes `Zoe` for removed, not on the list")
    # A command that was killed recorded it in one place alone.
    write_ledger(run, chain(digest))
    assert main(["ledger", "run", "after"]) == 0 and ledger_of(run) == ledger_of(model)
    # But else the run and its model must say the same.
    write_ledger(run, Ledger([*chain(digest).entries[:-1], entry(model_sha256=digest).sealed()]))
    assert_refused(capsys, main(["ledger", "run"]), "run` and `run/model` have different ledgers")


# Models made without training


def test_a_converted_model_keeps_its_ledger(model, capsys):
    assert main(["convert", "model", "other", "--to", "openclip"]) == 0
    found = read_ledger(Path("other"), read_model_directory("other").digest())
    assert found and [x.how for x in found.entries[-2:]] == ["restore", "convert"]
    assert "in another layout" in (Path("other") / CARD).read_text()
    write_card(model, ledger_of(model))
    # Nothing checks an Orbax checkpoint's weights, so that it has no ledger, nor what comes of it.
    capsys.readouterr()
    assert main(["convert", "model", "orbax", "--to", "orbax"]) == 0
    assert "ledger.json stays behind" in capsys.readouterr().err
    assert main(["convert", "orbax", "back", "--to", "hf"]) == 0
    assert read_ledger(Path("orbax")) is None and read_ledger(Path("back")) is None
    assert "People removed" not in (Path("orbax") / CARD).read_text()


def test_a_model_of_two_has_the_entries_of_both(tmp_path):
    out = write_model_directory(tmp_path / "model")
    join_ledgers(out, "merge", None, None)
    assert not (out / LEDGER).exists()
    image = with_entry([], entry(kind="defense_image", model_sha256=C, reached={"image": False}))
    join_ledgers(out, "merge", with_entry([], entry()), image)
    found = read_ledger(out, read_model_directory(out).digest())
    assert found and [x.how for x in found.entries] == ["first", "first", "merge"]
    assert found.last.follows == [x.id for x in found.entries[:2]]
    assert "Validation of faces did not pass." in (out / CARD).read_text()


def test_entries_follow_in_order_alone():
    one, two, three = chain().entries
    with pytest.raises(InputError, match="in a circle"):
        from jaxdefense.ledger.entries import _check

        _check([two, one, three], "here", D)
