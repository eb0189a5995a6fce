"""The section of a model card that says what was removed from the model."""

from collections.abc import Iterator
from pathlib import Path

from jaxdefense.figures import count
from jaxdefense.files import write_bytes
from jaxdefense.ledger.entries import LEDGER, Entry, Ledger, Proved, shown

CARD = "README.md"
_BEGIN, _END = "<!-- jaxdefense: removals -->", "<!-- jaxdefense: end of removals -->"
_WHAT = {
    "defense_text": "names, from the text encoder",
    "defense_image": "faces, from the image encoder",
    "defense_both": "names and faces, from both encoders",
}
_HOW = {
    "first": "from a model without a record of earlier removals",
    "on top": "from a model defended before, whose people were not removed again",
    "replay": "together with those removed before, going on from the defended model",
    "fresh": "together with those removed before, beginning again with the original model",
    "restore": "beginning again with the original model, without those who came off the list",
    "rebase": "the people of an earlier list, from another model",
}
_ENCODERS = {"text": "names", "image": "faces"}


def write_card(directory: Path, ledger: Ledger) -> None:
    """Write what was removed into a model's card, in place of what it said of this before.

    The rest of the card is kept as it is, byte for byte; without a card, one is made.

    Args:
        directory: of the model.
        ledger: of the model.
    """
    path = directory / CARD
    card = path.read_bytes() if path.exists() else b""
    section = "\n".join([_BEGIN, *lines(ledger), _END]).encode()
    if place := _section(card):
        card = card[: place[0]] + section + card[place[1] :]
    else:
        gap = b"" if not card else b"\n" if card.endswith(b"\n") else b"\n\n"
        card = card + gap + section + b"\n"
    write_bytes(path, card)


def drop_section(directory: Path) -> None:
    """Cut what was removed out of a model's card, where its ledger does not go along."""
    path = directory / CARD
    if path.exists() and (place := _section(card := path.read_bytes())):
        write_bytes(path, card[: place[0]] + card[place[1] :])


def _section(card: bytes) -> tuple[int, int] | None:
    """Find the section in a card: where it begins, and ends."""
    end = card.find(_END.encode())
    begin = card.rfind(_BEGIN.encode(), 0, max(end, 0))
    return (begin, end + len(_END)) if begin >= 0 else None


def lines(ledger: Ledger) -> list[str]:
    """Say what was removed, as Markdown."""
    last = ledger.last
    out = [
        "## People removed",
        "",
        f"People's names or faces were removed from this model with jaxdefense {last.version}; "
        f"`{LEDGER}` beside this card is the record. SHA-256 of the weights: "
        f"`{last.model_sha256}`.",
        "",
    ]
    out += [f"- {text}" for text in sentences(ledger)]
    if not last.proved:
        out += ["", "No attack on this very model was recorded here."]
    return out


def sentences(ledger: Ledger) -> list[str]:
    """Say what each entry did, and what attacks on its model found."""
    out = list[str]()
    for entry in ledger.entries:
        out += [sentence(entry), *(proved(found, entry) for found in entry.proved)]
    return out


def sentence(entry: Entry) -> str:
    """Say what an entry did."""
    day, made = entry.date.partition("T")[0] or "On a day unknown", shown(entry.model_sha256)
    if entry.how == "merge":
        return f"{day}: two defended encoders were joined into one model (`{made}`)."
    if entry.how == "convert":
        return f"{day}: the weights were written in another layout (`{made}`)."
    new = f", {entry.added:,} of them new" if entry.added != entry.people else ""
    off = f"; {count(entry.restored, 'person', 'people')} came off the list" * bool(entry.restored)
    who = count(entry.people, "person", "people")
    if left := entry.without_photos:
        new += f", {left:,} of them without photos, so that their faces were left"
    return (
        f"{day}: {who}{new}{off} ({_WHAT.get(entry.kind, entry.kind)}), {_HOW[entry.how]}; "
        f"from `{shown(entry.start_sha256)}` to `{made}`. {' '.join(_validated(entry))}"
    )


def _validated(entry: Entry) -> Iterator[str]:
    if not entry.reached:
        yield "The run validated nothing."
    for encoder, passed in entry.reached.items():
        what = _ENCODERS.get(encoder, encoder)
        yield f"Validation of {what} {'passed' if passed else 'did not pass'}."


def proved(found: Proved, entry: Entry) -> str:
    """Say what an attack on the model of an entry found."""
    prompts = f" with {count(found['prompts'], 'prompt')}" if "prompts" in found else ""
    names = f" among {found['names']:,} names" if "names" in found else ""
    who = f"{found['people']:,} of the {found['listed']:,} on the list"
    if not found["listed"]:
        who = f"{count(found['people'], 'person', 'people')} of a list that was not compared"
    return (
        f"{found['recorded']}: {found['kind']} on `{shown(entry.model_sha256)}`, on {who}{prompts}"
        f"{names}: {found['found']:,} recognised, {found['photos_right']:.1%} of their photos "
        f"named right (`{shown(found['summary_sha256'])}`)."
    )
