"""Ways round a defense: each form, the attack with it, and the defense trained on it."""

import dataclasses
import functools
import io
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from factories import attacked, logged, tiny_tokenizer, write_faces, write_model_directory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_idia import slow_majority
from test_triggers import assert_batches_equal, make_batches, make_triggers, slots_of

from jaxdefense.cli import main
from jaxdefense.config import (
    NAME_FORMS,
    PAPER_TEXT,
    PHOTO_FORMS,
    VARIANTS,
    AttackConfig,
    ImageTrainConfig,
    ModelConfig,
    TextTrainConfig,
)
from jaxdefense.data.captions import without_names
from jaxdefense.data.faces import ImageBatches
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import ImageProcessor, Loader, read_folders
from jaxdefense.data.variants import misspell, name_form, photo_form, spellings
from jaxdefense.defense.text import listed_texts, target_texts
from jaxdefense.defense.text import make_triggers as triggers_of
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import infer
from jaxdefense.idia.candidates import Candidates
from jaxdefense.idia.prompts import LANGUAGES, TEMPLATES, in_sentence
from jaxdefense.idia.statistics import wilson
from jaxdefense.idia.variants import change_names
from jaxdefense.sharding import make_mesh

# Names


@pytest.mark.parametrize(
    "name,wanted",
    [
        ("Jane Smith", ("Smith", "Jane", "J. Smith", "Smith Jane", "jane smith", "JANE SMITH")),
        (
            "Robert Downey Jr.",
            ("Downey", "Robert", "R. Downey", "Downey Robert")
            + ("robert downey jr.", "ROBERT DOWNEY JR."),
        ),
        (
            "Ana Ruiz Gil",
            ("Gil", "Ana", "A. R. Gil", "Gil Ana Ruiz", "ana ruiz gil", "ANA RUIZ GIL"),
        ),
        ("Zoë", (None, None, None, None, "zoë", "ZOË")),
        ("Zoë Jr.", (None, None, None, None, "zoë jr.", "ZOË JR.")),
    ],
)
def test_forms_of_names(name, wanted):
    forms = ("last", "first", "initials", "swapped", "lower", "upper")
    assert tuple(name_form(name, form) for form in forms) == wanted


def distance(a, b):
    """Letters replaced, left out, put in, or changed for the next: a table, row by row."""
    d = {(i, -1): i + 1 for i in range(-1, len(a))} | {(-1, j): j + 1 for j in range(-1, len(b))}
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (x != y))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a) - 1, len(b) - 1]


def test_distance_is_as_published():
    pairs = [("kitten", "sitting"), ("ca", "ac"), ("a", ""), ("flaw", "lawn"), ("same", "same")]
    assert [distance(a, b) for a, b in pairs] == [3, 1, 1, 2, 0]


names = st.lists(st.text("abAésZ'-.", min_size=1, max_size=6), min_size=1, max_size=3)


@given(names.map(" ".join), st.integers(0, 2**40))
def test_a_misspelt_name_is_one_mistake_away_whatever_the_case(name, seed):
    got = misspell(name, seed)
    if not any(c.isalpha() for c in name):
        assert got is None
        return
    assert got is not None
    assert distance(name.casefold(), got.casefold()) == 1
    assert len(got.split()) == len(name.split())
    assert got == misspell(name, seed) == name_form(name, "misspelt", seed)


def test_all_mistakes_come_up_and_with_the_seed_another():
    got = [misspell("Jane Smith", seed) or "" for seed in range(400)]
    lengths = Counter(len(x) - 10 for x in got)
    swaps = sum(sorted(x) == sorted("Jane Smith") for x in got)
    shares = [swaps, lengths[0] - swaps, lengths[1], lengths[-1]]
    assert all(70 < share < 130 for share in shares), shares
    assert len(set(got)) > 150


# Photos


def noise(side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("form", PHOTO_FORMS)
@pytest.mark.parametrize("side", [1, 3, 16, 48])
def test_forms_of_photos_keep_size_type_and_what_is_flat(form, side):
    image = noise(side)
    before = image.copy()
    got = photo_form(image, form)
    assert got.shape == image.shape and got.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    flat = np.full((side, side, 3), 90, np.uint8)
    np.testing.assert_array_equal(photo_form(flat, form), flat)


def test_mirrored_is_left_for_right_and_twice_nothing():
    image = noise()
    np.testing.assert_array_equal(photo_form(image, "mirrored"), image[:, ::-1])
    np.testing.assert_array_equal(photo_form(photo_form(image, "mirrored"), "mirrored"), image)


def test_grey_is_the_luma_of_each_pixel():
    image = noise()
    got = photo_form(image, "grey")
    luma = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(got, np.repeat(luma[..., None], 3, -1), atol=1)


def test_cropped_is_the_middle_enlarged():
    image = np.zeros((16, 16, 3), np.uint8)
    image[2:14, 2:14] = 255  # just what stays
    assert photo_form(image, "cropped").min() == 255
    image[:3] = 0  # a row of the middle
    assert photo_form(image, "cropped")[0].max() < 255


def test_blurred_spreads_a_square_evenly_and_further_on_larger_photos():
    reach = []
    for side in (112, 224):
        image = np.zeros((side, side, 3), np.uint8)
        image[side // 2 - 9 : side // 2 + 9, side // 2 - 9 : side // 2 + 9] = 255
        row = photo_form(image, "blurred")[side // 2, :, 0].astype(int)
        np.testing.assert_array_equal(row, row[::-1])
        reach.append((row > 0).sum())
    assert 18 < reach[0] < reach[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_low_resolution_loses_what_is_fine(axis):
    fine = np.zeros((16, 16, 3), np.uint8)
    fine.swapaxes(0, axis)[::2] = 200
    assert np.ptp(photo_form(fine, "low_resolution")[4:12, 4:12]) < 40 < np.ptp(fine)


# The attack


@pytest.mark.parametrize("same_M, correct", [(None, 0), (np.array([0, 0, 2]), 1)])
def test_names_of_one_person_vote_together(same_M, correct):
    # Each photo is nearest to another candidate: alone it is a tie, together theirs wins.
    unit_33 = np.eye(3, dtype=np.float32)
    correct_I, answer_QI, right_I = infer(
        unit_33, np.zeros(3, np.int64), [unit_33[None]], np.zeros(3, np.int64), 1, 3, make_mesh(),
        np.array([0]), same_M,
    )  # fmt: skip
    assert correct_I.tolist() == [correct]
    assert (answer_QI.tolist() == [[0]]) == bool(correct)
    assert right_I.tolist() == pytest.approx([2 / 3 if correct else 1 / 3])


@pytest.fixture
def inputs(tmp_path):
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 77})
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King", "Zoe", "Max King"], 3)
    (tmp_path / "others.txt").write_text("Bob Keep\nEve Stay\nIda Cool\nJoe Ek\nSly\n")
    return tmp_path


def config(inputs, **change):
    values: dict[str, Any] = {"candidates": str(inputs / "others.txt"), "batch": 8} | change
    where: dict[str, Any] = {"out": str(inputs / "results"), "faces": str(inputs / "faces")}
    return AttackConfig(model=ModelConfig(str(inputs / "model")), **(where | values))


PEOPLE = ["Ada King", "Joe Cool", "Max King", "Zoe"]
OTHERS = ["Bob Keep", "Eve Stay", "Ida Cool", "Joe Ek", "Sly"]


def by_hand(inputs, texts, templates, change=lambda image: image):
    """The attack one photo, prompt and name at a time.

    Args:
        texts: person or other -> texts they go by.
        templates: prompts.
        change: a photo.

    Returns:
        correct templates of each person, and the mean over people of the photos named right.
    """
    model = Embedder(ModelConfig(str(inputs / "model")), 8)
    embed = functools.cache(lambda text: model.texts([text])[0])
    folders = read_folders(inputs / "faces", "faces")
    out, right = {}, []
    for folder in folders:
        if folder.name not in texts:
            continue
        changed = []
        for i, file in enumerate(folder.files):
            processor = ImageProcessor(12, 12)
            path = inputs / f"{folder.name}{i}.png"
            with Image.open(io.BytesIO(file.read_bytes())) as photo:
                Image.fromarray(change(processor(photo))).save(path)
            changed.append(model.photos([path])[0])
        out[folder.name], all_votes = 0, []
        for template in templates:
            votes = []
            for image_E in changed:
                best, named = -np.inf, set()
                for who, those in texts.items():
                    for text in those:
                        cosine = float(image_E @ embed(template.format(text)))
                        if cosine > best + 1e-6:
                            best, named = cosine, {who}
                        elif abs(cosine - best) <= 1e-6:
                            named.add(who)
                votes.append(tuple(sorted(named)))
            all_votes += [folder.name in vote for vote in votes]
            answer = slow_majority(votes)
            out[folder.name] += answer != -1 and folder.name in answer
        right.append(np.mean(all_votes))
    return out, pytest.approx(np.mean(right))


NAMED = PEOPLE[:3] + OTHERS[:4]
HANDMADE = {
    "last": dict(zip(NAMED, "King Cool King Keep Stay Cool Ek".split(), strict=True)),
    "first": dict(zip(NAMED, "Ada Joe Max Bob Eve Ida Joe".split(), strict=True)),
    "upper": {name: name.upper() for name in PEOPLE + OTHERS},
    "initials": dict(
        zip(
            NAMED,
            ("A. King", "J. Cool", "M. King", "B. Keep", "E. Stay", "I. Cool", "J. Ek"),
            strict=True,
        )
    ),
    "misspelt": {name: misspell(name, 0) or "" for name in PEOPLE + OTHERS},
}


@pytest.mark.parametrize("variant", HANDMADE)
def test_a_name_variant_is_the_attack_with_all_names_changed_by_hand(inputs, variant):
    (inputs / "templates.txt").write_text("\n".join(TEMPLATES[:5]) + "\n")
    cfg = config(inputs, variants=(variant,), templates=str(inputs / "templates.txt"))
    got = attacked(cfg)["variants"][variant]
    texts = {who: [text] for who, text in HANDMADE[variant].items()}
    want, right = by_hand(inputs, texts, TEMPLATES[:5])
    assert got["per_identity"] == want and got["photos_right"] == right
    hits = sum(n >= 1 for n in want.values())
    assert got["tpr"] == hits / len(want)
    assert got["tpr_interval"] == list(wilson(hits, len(want)))
    assert got["num_candidates"] == len(set(HANDMADE[variant].values()))
    assert got["skipped"] == [name for name in PEOPLE if name not in want]
    assert got["num_identities"] == len(want)


@pytest.mark.parametrize("variant", ["languages", "sentence"])
def test_a_prompt_variant_is_the_attack_with_other_templates(inputs, variant):
    templates = LANGUAGES if variant == "languages" else in_sentence(TEMPLATES)
    assert len(set(templates)) == 21
    (inputs / "templates.txt").write_text("\n".join(templates) + "\n", encoding="utf-8")
    got = attacked(config(inputs, variants=(variant,)))["variants"][variant]
    other = config(inputs, templates=str(inputs / "templates.txt"), out=str(inputs / "other"))
    assert got["per_identity"] == attacked(other)["per_identity"]
    assert got["skipped"] == []


@pytest.mark.parametrize("variant", PHOTO_FORMS)
def test_a_photo_variant_is_the_attack_on_photos_changed_by_hand(inputs, variant):
    (inputs / "templates.txt").write_text("\n".join(TEMPLATES[:5]) + "\n")
    cfg = config(inputs, variants=(variant,), templates=str(inputs / "templates.txt"))
    got = attacked(cfg)
    texts = {name: [name] for name in PEOPLE + OTHERS}
    change = lambda image: photo_form(image, variant)  # noqa: E731
    for found, how in ((got["variants"][variant], [change]), (got, [])):
        want, right = by_hand(inputs, texts, TEMPLATES[:5], *how)
        assert found["per_identity"] == want and found["photos_right"] == right


def test_aliases_of_one_person_vote_together(inputs):
    (inputs / "aliases.txt").write_text("Joseph Cool\tJoe Cool\tThe Cool\nMax King\nZoe\tZozo\n")
    (inputs / "templates.txt").write_text("\n".join(TEMPLATES[:5]) + "\n")
    change: dict[str, Any] = dict(variants=("alias",), aliases=str(inputs / "aliases.txt"))
    cfg = config(inputs, templates=str(inputs / "templates.txt"), **change)
    got = attacked(cfg)["variants"]["alias"]
    texts = {name: [name] for name in PEOPLE + OTHERS}
    texts |= {"Joe Cool": ["Joseph Cool", "The Cool"], "Zoe": ["Zozo"]}
    want, _ = by_hand(inputs, texts, TEMPLATES[:5])
    assert got["per_identity"] == {name: want[name] for name in ("Joe Cool", "Zoe")}
    assert got["skipped"] == ["Ada King", "Max King"]
    assert got["num_candidates"] == 10


def test_texts_that_come_to_be_one_are_one_candidate_in_each_group():
    candidates = Candidates(["A X", "B X", "C Y", "D X"], [])
    candidates.group_M[:] = [0, 0, 0, 1]
    game = change_names(candidates, 2, lambda i, name: [name.split()[1]], "last")
    assert game.candidates.block(0, 9) == ["X", "Y", "X"]
    assert game.candidates.group_M.tolist() == [0, 0, 1]
    assert game.own_I.tolist() == [0, 0] and game.who == [0, 1]
    game = change_names(candidates, 2, lambda i, name: [name, name + "2"] if i else [], "x")
    assert game.own_I.tolist() == [0] and game.who == [1]
    assert game.same_M.tolist() == [0, 0, 2, 2, 4, 4]
    with pytest.raises(ValueError, match="no two candidates differ"):
        change_names(candidates, 2, lambda i, name: ["X"] if i < 3 else [], "last")


def test_photos_are_embedded_once_for_names_and_texts_once_for_photos(inputs, monkeypatch):
    calls: Counter = Counter()
    for what in ("readable_photos", "prompts"):
        run = getattr(Embedder, what)

        def counted(*args, what=what, run=run, **options):
            calls[what] += 1
            return run(*args, **options)

        monkeypatch.setattr(Embedder, what, counted)
    variants = ("last", "first", "grey", "mirrored")
    found = attacked(config(inputs, variants=variants, cache_dir="none"))
    assert calls == {"readable_photos": 3, "prompts": 3}
    plain = attacked(config(inputs, out=str(inputs / "plain"), cache_dir="none"))
    assert list(found.pop("variants")) == list(variants)
    assert found == plain


def test_the_cache_tells_forms_of_photos_apart(inputs):
    cached = config(inputs, variants=PHOTO_FORMS, cache_dir=str(inputs / "cache"))
    first = attacked(cached)
    again = config(
        inputs, variants=PHOTO_FORMS, cache_dir=str(inputs / "cache"), out=str(inputs / "b")
    )
    assert attacked(again) == first
    assert len(list((inputs / "cache").rglob("photos-*"))) == 1 + len(PHOTO_FORMS)


def test_all_variants_on_people_and_strangers(inputs):
    write_faces(inputs / "strangers", ["Una Ek", "Ivo"], 2)
    cfg = config(inputs, variants=("all",), strangers=str(inputs / "strangers"))
    with logged() as said:
        found = attacked(cfg)["variants"]
    assert list(found) == [name for name in VARIANTS if name != "alias"]
    assert "variant `last`: `Zoe`, `Ivo` left out" in said.getvalue()
    assert found["last"]["num_identities"] == 3 and found["last"]["skipped"] == ["Zoe", "Ivo"]
    assert all({"tpr", "tpr_interval", "fpr", "auc"} <= set(x) for x in found.values())


def test_a_variant_nobody_has_gives_no_rate(inputs):
    for folder in ("Joe_Cool", "Ada_King", "Max_King"):
        (inputs / "faces" / folder).rename(inputs / "faces" / folder.replace("_", ""))
    found = attacked(config(inputs, variants=("last",)))["variants"]["last"]
    assert found == {"num_identities": 0, "skipped": ["AdaKing", "JoeCool", "MaxKing", "Zoe"]}


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--variants", "last,lost"], "`variants` (='lost') must be of last, first"),
        (["--variants", "last,last"], "names one twice"),
        (["--variants", "alias"], "only together"),
        (["--variants", "last", "--aliases", "aliases.txt"], "only together"),
        (["--variants", "alias", "--aliases", "none.txt"], "none.txt` does not exist"),
        (["--variants", "alias", "--aliases", "aliases.txt"], "no photos of `Jo Kool`"),
        (["--variants", "all", "--aliases", "bare.txt"], "gives nobody with photos another name"),
        (["--variants", "languages", "--set", "threshold=22"], "at most the number of templates"),
    ],
)
def test_wrong_variants_are_refused_in_one_line(inputs, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(inputs)
    (inputs / "aliases.txt").write_text("Jo Kool\tJK\n")
    (inputs / "bare.txt").write_text("Joe Cool\n")
    code = main(["attack", "--model", "model", "--faces", "faces", "--out", "x", *flags])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not (inputs / "x").exists()


# The defenses


def test_listed_texts_are_names_then_each_form():
    people = [Identity("Ann Lee", ("A. Lee",)), Identity("Zoe")]
    cfg = TextTrainConfig(variants=("last", "initials", "misspelt"))
    (ann, zoe) = listed_texts(people, cfg)
    assert ann[:2] == [["Ann Lee", "A. Lee"], ["Lee"]]
    assert ann[2] == ["A. Lee"]
    assert [len(kind) for kind in zoe[:1]] == [1] and len(zoe) == 2
    assert all(distance("zoe", text.casefold()) == 1 for text in zoe[1])
    assert len(set(ann[-1])) == len(ann[-1]) > 16
    assert listed_texts(people, TextTrainConfig()) == [[["Ann Lee", "A. Lee"]], [["Zoe"]]]


@pytest.mark.parametrize(
    "name, others",
    [
        ("Ann Lee", []),
        ("Sean O'Neil", ["Sean O\u2019Neil"]),
        ("Sean O\u02bcNeil", ["Sean O'Neil", "Sean O\u2019Neil"]),
        ("Jean-Luc Picard", ["Jean Luc Picard"]),
        ("Jean\u2011Luc", ["Jean-Luc", "Jean Luc"]),
        ("Zoë", ["Zoe\u0308", "Zoe"]),
        ("Zoe\u0308", ["Zoë", "Zoe"]),
        ("Max Müller", ["Max Mu\u0308ller", "Max Muller", "Max Mueller"]),
        ("Weiß", ["Weiss"]),
        ("Søren", ["Soren", "Soeren"]),
        ("Żak-O'B", [f"{z}{dash}O{mark}B" for z in ("Żak", "Z\u0307ak", "Zak")
                     for dash in "- " for mark in "'\u2019"][1:]),
        ("علی\u200cرضا", ["علیرضا"]),
        ("王小明", []),
    ],
)  # fmt: skip
def test_spellings_are_what_people_type(name, others):
    found = spellings(name)
    assert len(set(found)) == len(found) and name not in found
    assert set(found) == set(others)
    # All of them are dropped from captions, and are no random names.
    assert without_names([*found, "a cat"], [name]) == ["a cat"]


def test_names_are_put_in_in_all_spellings_that_have_tokens_of_their_own():
    tokenizer = tiny_tokenizer(24)
    people = [Identity("Ann Lee", ("ANN LEE",)), Identity("Zoë O'Ek", ("Zoe O'Ek", "Zé"))]
    names = {x for kinds in listed_texts(people, TextTrainConfig()) for k in kinds for x in k}
    triggers = triggers_of(people, tokenizer, TextTrainConfig(), "names")
    tokens = [
        [{tuple(phrase.first.tolist()) for phrase in kind} for kind in (own, *others)]
        for own, others in zip(triggers.names, triggers.forms, strict=True)
    ]
    encoded = [
        [{tuple(tokenizer.encode_phrase(x).tolist()) for x in kind} for kind in kinds]
        for kinds in (
            [["ann lee"]],  # in capitals it has the same tokens
            [["zoë o'ek", "zoe o'ek", "zé"], ["zoë o’ek", "zoe o’ek", "ze"]],
        )
    ]
    assert tokens == encoded
    assert {"Zoe\u0308 O'Ek", "Ze\u0301", "Zoë O’Ek"} < names  # tokenizers that keep them apart


def test_random_names_are_none_of_the_list_in_any_spelling():
    from jaxdefense.data.names import random_names

    first = random_names(30, 1)
    accented = [name.translate(str.maketrans("aeo", "áéö")).upper() for name in first]
    cfg = dataclasses.replace(PAPER_TEXT, random_target=True, seed=1)
    assert target_texts([Identity("x")] * 30, cfg, []) == first
    others = target_texts([Identity("x")] * 30, cfg, accented)
    assert not set(first) & set(others)


def test_without_variants_batches_stay_as_they_were():
    tokenizer = tiny_tokenizer(24)
    people = [Identity("Ann Lee"), Identity("Bo Neil", ("B. Neil", "the bo"))]
    triggers = triggers_of(people, tokenizer, TextTrainConfig(), "names")
    assert triggers.forms == [[], []]
    bare = make_triggers(names=[person.names for person in people], targets=["human"], keep=[])
    for step in range(4):
        assert_batches_equal(
            make_batches(triggers=triggers)[step], make_batches(triggers=bare)[step]
        )


def test_forms_are_put_in_as_often_as_names_and_people_weigh_the_same():
    encode = tiny_tokenizer(24).encode_phrase
    texts = {"Ann Lee": [["Lee"], ["L. Ann", "Anne Lee", "An Lee"]], "Zoe": [["ZZ top"]]}
    bare = make_triggers(names=[[name] for name in texts], targets=["human"], keep=[])
    phrase = tiny_tokenizer(24).phrase
    forms = [[[phrase(x) for x in kind] for kind in kinds] for kinds in texts.values()]
    triggers = type(bare)(bare.names, bare.targets, bare.target_of, bare.keep, forms)
    batches = make_batches(triggers=triggers, num_poisoned=10)
    plain = make_batches(triggers=bare, num_poisoned=10)
    phrases = {
        tuple(encode(x).tolist()): (name, i)
        for name, kinds in texts.items()
        for i, kind in enumerate([[name], *kinds])
        for x in kind
    }
    longest = sorted(phrases, key=len, reverse=True)

    def found(tokens):
        for phrase in longest:
            for at in range(len(tokens)):
                if tuple(tokens[at : at + len(phrase)]) == phrase:
                    return phrases[phrase]
        raise AssertionError(tokens)

    counts: Counter = Counter()
    for step in range(60):
        weights: Counter = Counter()
        slots = slots_of(batches[step])
        for slot in slots:
            if slot.backdoor:
                who = found(slot.student)
                counts[who] += 1
                weights[who[0]] += slot.backdoor
        assert weights == pytest.approx({"Ann Lee": 0.5, "Zoe": 0.5})
        clean = [s.student for s in slots if s.utility]
        assert sorted(clean) == sorted(s.student for s in slots_of(plain[step]) if s.utility)
    assert set(counts) == {("Ann Lee", 0), ("Ann Lee", 1), ("Ann Lee", 2), ("Zoe", 0), ("Zoe", 1)}
    for who, num in counts.items():
        share = 100 if who[0] == "Ann Lee" else 150
        assert abs(num - share) < 0.3 * share


def test_captions_with_a_form_are_dropped_only_if_it_is_put_in():
    texts = ["see Lee here", "a cat"]
    for variants, left in (((), 2), (("last",), 1)):
        kinds = listed_texts([Identity("Ann Lee")], TextTrainConfig(variants=variants))
        assert len(without_names(texts, [x for k in kinds for kind in k for x in kind])) == left


def image_batches(path, forms):
    people = read_folders(path / "faces", "faces")
    photos = [file for person in people for file in person.files]
    loader = Loader(ImageProcessor(12, 12), keep_bytes=10**6)
    return ImageBatches(
        photos, people, np.ones(3, np.float32), loader,
        num_clean=3, num_poisoned=12, seed=0, forms=forms,
    )  # fmt: skip


def test_faces_come_in_forms_evenly_and_all_else_stays(tmp_path):
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King"], 3)
    forms = ("mirrored", "grey")
    plain, mixed = image_batches(tmp_path, ()), image_batches(tmp_path, forms)
    counts: Counter = Counter()
    for step in [*range(40), 0]:
        a, b = plain[step], mixed[step]
        np.testing.assert_array_equal(a.clean_BHWC, b.clean_BHWC)
        np.testing.assert_array_equal(a.backdoor_B, b.backdoor_B)
        np.testing.assert_array_equal(a.target_BE, b.target_BE)
        for before, after in zip(a.face_BHWC, b.face_BHWC, strict=True):
            fits = [f for f in forms if (photo_form(before, f) == after).all()]
            fits += [""] * bool((before == after).all())
            assert len(fits) == 1
            counts[fits[0]] += 1
    assert all(abs(n - 164) < 40 for n in counts.values()) and len(counts) == 3


@pytest.mark.parametrize(
    "kind,value",
    [(TextTrainConfig, "alias"), (TextTrainConfig, "grey"), (ImageTrainConfig, "last")],
)
def test_variants_no_defense_can_be_trained_on_are_refused(kind, value):
    with pytest.raises(ValueError, match=re.escape(f"`train.variants` (='{value}') must be of")):
        kind(variants=(value,))
    kind(variants=NAME_FORMS if kind is TextTrainConfig else PHOTO_FORMS)
