"""What was not measured, and the command that would measure it."""

from collections.abc import Iterator, Mapping, Sequence

from jaxdefense.config import VARIANTS
from jaxdefense.report.match import AFTER, ALONE, BEFORE
from jaxdefense.report.proof import Proof
from jaxdefense.report.sources import Attack, Run
from jaxdefense.results import Collateral


def not_measured(
    runs: Sequence[Run],
    attacks: Mapping[str, Attack],
    proof: Proof | None,
    utility: Mapping[str, float],
    collateral: Collateral | None,
) -> Iterator[str]:
    """Name what was not measured, and the command that would do it; code is in backticks."""
    if level := of_a_diffusion_model(runs):
        yield from _of_pictures(level, utility)
        return
    yield from _of_stages(attacks)
    if proof:
        yield from _of_people(attacks, proof)
    yield from _of_use({run.encoder for run in runs}, utility, collateral)


def of_a_diffusion_model(runs: Sequence[Run]) -> str:
    """Give the level at which a lone text encoder was defended; "" for a model that sees photos."""
    levels = [run.setting("train.level") for run in runs]
    return levels[0] if len(levels) == 1 and levels[0] in ("hidden", "penultimate") else ""


def _of_pictures(level: str, utility: Mapping[str, float]) -> Iterator[str]:
    """Name what can be measured of a text encoder that a diffusion model reads."""
    yield (
        "Whether the diffusion model still draws anyone: put the defended encoder in place, and "
        "look at pictures of removed and of other names. No command here makes pictures."
    )
    if "sim_clean" not in utility:
        yield f"How far ordinary captions moved, at level {level} (`evaluate --captions`)."
    if "sim_backdoor" not in utility:
        yield "Where removed names lead (`evaluate --captions --names --target`)."


def _of_stages(attacks: Mapping[str, Attack]) -> Iterator[str]:
    if not attacks:
        yield (
            "Whether the model still knows anyone: `jaxdefense attack`, on the original and on the "
            "defended model."
        )
    elif ALONE in attacks:
        yield "Before and after: attack the other model too."
    elif BEFORE not in attacks:
        earlier = attacks[AFTER].setting("before")
        where = f"give `{earlier}` too" if earlier else "`jaxdefense attack` on the original model"
        yield f"Whom the model knew before, and so what became of each person: {where}."
    elif AFTER not in attacks:
        yield "Whom the model still knows: `jaxdefense attack` on the defended model."


def _of_people(attacks: Mapping[str, Attack], proof: Proof) -> Iterator[str]:
    if any(person.removed is None for person in proof.people):
        yield "What became of each person: the list of people to remove is not known."
    if absent := [person for person in proof.people if not person.correct]:
        yield (
            f"{len(absent)} on the list of whom the attack had no photos: "
            f"{', '.join(person.name for person in absent[:20])}"
            f"{' …' if len(absent) > 20 else ''}."
        )
    if any(person.correct.keys() - person.photos_right.keys() for person in proof.people):
        yield "What part of people's photos is named right: attack again; these results lack it."
    tried = [set(attack.summary.variants or {}) for attack in attacks.values()]
    if left := [name for name in VARIANTS if any(name not in names for names in tried)]:
        said = "Ways" if len(left) == len(VARIANTS) else "Some ways"
        listed = ", ".join(name.replace("_", " ") for name in left)
        yield (
            f"{said} round the defense that not every attack tried: {listed} (`attack --variants`)."
        )
    if not any(attack.summary.fpr is not None for attack in attacks.values()):
        yield (
            "How often the attack recognises by mistake people whom the model never saw "
            "(`attack --strangers`)."
        )


def _of_use(
    encoders: set[str], utility: Mapping[str, float], collateral: Collateral | None
) -> Iterator[str]:
    for key, what in (
        ("sim_clean", "How far ordinary captions moved (`evaluate --captions`)"),
        ("image_sim_clean", "How far ordinary photos moved (`evaluate --images`)"),
        ("top1", "How well objects are still classified (`evaluate --zeroshot`)"),
    ):
        other = {"sim_clean": {"image"}, "image_sim_clean": {"text"}}.get(key)
        if key not in utility and encoders != other:
            yield f"{what}."
    if not collateral and encoders != {"image"}:
        yield "How far the names of other people moved (`evaluate --collateral`)."
