"""The section on ways round a defense."""

from collections.abc import Mapping

from markupsafe import Markup

from jaxdefense.report.frame import render
from jaxdefense.report.labels import SHORT, stage_label
from jaxdefense.report.proof import Proof

_VARIANTS = {
    "first": "the first name alone",
    "last": "the last name alone",
    "initials": "J. Smith for John Smith",
    "swapped": "Smith John for John Smith",
    "lower": "the name in lower case",
    "upper": "the name in capitals",
    "misspelt": "the name with one letter wrong",
    "alias": "other names the person goes by",
    "languages": "prompts in seven other languages",
    "sentence": "the prompts in longer sentences",
    "mirrored": "the photo mirrored",
    "blurred": "the photo blurred",
    "grey": "the photo without colours",
    "cropped": "the middle of the photo",
    "low_resolution": "the photo at a quarter of its resolution",
}


def variants(proof: Proof, candidates: Mapping[str, int]) -> Markup:
    """Show the rate of each way round a defense; the way that finds most people comes first.

    Args:
        proof: results of the attacks, with their variants.
        candidates: variant -> number of names that the attack chose from.
    """
    names = proof.variants()
    if not names:
        return Markup()
    groups = [removed for removed in SHORT if proof.of(removed)]
    ends = list(dict.fromkeys((proof.first, proof.last)))
    head = ["Way round"]
    head += [f"{SHORT[g]}, {stage_label(s).lower()}".capitalize() for g in groups for s in ends]
    lines = []
    for variant in ("", *names):
        found = [proof.found(proof.of(g), s, variant) for g in groups for s in ends]
        what = _VARIANTS.get(variant, "") if variant else "the plain attack, for comparison"
        if (num := candidates.get(variant, 0)) and num < proof.num_candidates:
            what += f"; among {num:,} names"
        lines.append((variant.replace("_", " ") or "none", what, found))
    return render("variants", head=head, lines=lines)
