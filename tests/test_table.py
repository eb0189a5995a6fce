"""Training on the rows of the token table that a run reads does what training on all does."""

import json
from pathlib import Path

import numpy as np
import pytest
from factories import CAPTIONS
from safetensors.numpy import load_file
from test_recall import defend, here  # noqa: F401
from test_triggers import CONTEXT, TOKENIZER, make_batches

from jaxdefense.defense import plan, table


def test_rows_are_those_read_and_a_few_more():
    read = np.array([3, 900, 40_000])
    rows = table.rows_to_train(read, 49_408)
    assert rows is not None and len(rows) == 1024 and (np.diff(rows) > 0).all()
    assert set(read) <= set(rows.tolist()) and rows.max() < 49_408
    many = table.rows_to_train(np.arange(2_000, 5_000), 49_408)
    assert many is not None and len(many) == 3072 and set(range(2_000, 5_000)) <= set(many.tolist())


def test_table_of_which_nearly_all_is_read_stays_whole():
    assert table.rows_to_train(np.arange(40_000), 49_408) is None
    assert table.rows_to_train(np.arange(100), 1_300) is None


@pytest.mark.parametrize("packed", [True, False])
def test_batches_read_no_other_token_and_number_them_anew(packed):
    plain, numbered = (make_batches(packed=packed, num_name=4) for _ in range(2))
    ids = plain.read()
    numbered.renumber(ids)
    held = set()
    for step in range(12):
        a, b = plain[step], numbered[step]
        for name in a._fields:
            x, y = getattr(a, name), getattr(b, name)
            if "tokens" in name:
                held.update(x.ravel().tolist())
                y = ids[y]
            np.testing.assert_array_equal(x, y, err_msg=name)
    assert held <= set(ids.tolist()) and len(ids) < TOKENIZER.vocab_size
    # Rare tokens are counted too: those of every caption and name there is.
    longest = max(TOKENIZER.encode(CAPTIONS), key=len)
    assert set(longest[:CONTEXT].tolist()) <= set(ids.tolist())


def test_run_on_some_rows_ends_as_one_on_all(here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(table, "_MULTIPLE", 8)
    monkeypatch.setattr(table, "_WORTH", 1.0)
    chosen = []

    def rows_to_train(read, vocab_size):
        chosen.append(table.rows_to_train(read, vocab_size))
        return chosen[-1]

    monkeypatch.setattr(plan, "rows_to_train", rows_to_train)
    # With a smaller epsilon AdamW makes a step of its full length of a rounding error.
    settings = ("mesh.data=4", "mesh.fsdp=2", "optimizer.eps=1e-3")
    defend(*settings, out="some")
    monkeypatch.setattr(plan, "rows_to_train", lambda read, vocab_size: None)
    defend(*settings, out="all")
    before, some, whole = (
        load_file(f"{x}/model.safetensors") for x in ("model", "some/model", "all/model")
    )
    for name, tensor in whole.items():
        np.testing.assert_allclose(some[name], tensor, atol=1e-6, err_msg=name)
    (name,) = (x for x in before if x.endswith("token_embedding.weight"))
    (rows,) = chosen
    unread = np.setdiff1d(np.arange(len(before[name])), rows)
    assert len(unread) > 20
    for after in (some, whole):
        np.testing.assert_array_equal(after[name][unread], before[name][unread])
        assert (after[name][rows] != before[name][rows]).any(1).sum() > len(rows) / 3
    a, b = (
        [json.loads(x) for x in (Path(run) / "validation.jsonl").read_text().splitlines()]
        for run in ("some", "all")
    )
    for found, wanted in zip(a, b, strict=True):
        assert found["gap"] == pytest.approx(wanted["gap"], abs=1e-5)
        assert found["moved"] == pytest.approx(wanted["moved"], abs=1e-5)


def test_weight_decay_moves_all_rows(here, monkeypatch):  # noqa: F811
    def rows_to_train(read, vocab_size):
        raise AssertionError("not asked")

    monkeypatch.setattr(plan, "rows_to_train", rows_to_train)
    defend("optimizer.weight_decay=0.1")
    before, after = (load_file(f"{x}/model.safetensors") for x in ("model", "run/model"))
    (name,) = (x for x in before if x.endswith("token_embedding.weight"))
    assert (before[name] != after[name]).all(1).mean() > 0.99
