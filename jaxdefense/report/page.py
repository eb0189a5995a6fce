"""The page on defenses, attacks and evaluations, and its headline."""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from jaxdefense.figures import count, duration
from jaxdefense.report import before_after, frame
from jaxdefense.report.asked import asked, done
from jaxdefense.report.cards import photos
from jaxdefense.report.headline import headline as proof_headline
from jaxdefense.report.headline import proof_tiles
from jaxdefense.report.maps import embedding_map
from jaxdefense.report.missing import of_a_diffusion_model
from jaxdefense.report.outcomes import outcomes_of
from jaxdefense.report.people import removed_by
from jaxdefense.report.proof import Proof
from jaxdefense.report.read import Findings, all_settings
from jaxdefense.report.use import collateral, utility
from jaxdefense.report.variants import variants


def as_page(findings: Findings) -> str:
    """Write the page."""
    section = frame.section
    only_removed = {x.summary.faces_of for x in findings.evaluations} - {""} == {"removed"}
    sections = [
        frame.tiles(_tiles(findings)),
        section("What was asked", asked(findings)),
        section("What was done", done(findings)),
        *(_of_proof(findings, findings.proof) if findings.proof else ()),
        section("What the model is used for", utility(findings.utility, only_removed)),
        section("Collateral: who else moved", collateral(findings.collateral)),
        section("What this does and does not show", _limits(findings)),
        frame.settings(all_settings(findings)),
    ]
    known = "What a CLIP model knows about people"
    title = "Removing people from a CLIP model" if findings.runs else known
    return frame.page(title, headline(findings), sections)


def _of_proof(findings: Findings, proof: Proof) -> Iterable[Markup]:
    """Write the sections on attacks."""
    attacks, section = findings.attacks, frame.section
    candidates = {
        name: found.get("num_candidates", 0)
        for attack in attacks.values()
        for name, found in (attack.summary.variants or {}).items()
    }
    curves = {stage: x.summary.curve.get("fpr", []) for stage, x in attacks.items()}
    yield section(
        "Proof: before and after",
        before_after.stages(proof),
        before_after.measures(proof),
        before_after.strangers(attacks),
        before_after.curve(proof, curves),
    )
    yield section("What became of each person", outcomes_of(proof))
    yield section("What the model calls people", photos(proof))
    yield section("Where the model embeds people", embedding_map(findings.maps))
    yield section("Ways round the defense", variants(proof, candidates))


def headline(findings: Findings) -> str:
    """Say in plain text what was asked, what was found, and what was not tested."""
    proof = findings.proof
    if proof:
        said = [proof_headline(proof)]
        if (ways := proof.variants()) and (
            found := proof.found(proof.of(True) or proof.people, proof.last, ways[0])
        ):
            said.append(
                f"Of {count(len(ways), 'way', 'ways')} round the defense that "
                f"{'was' if len(ways) == 1 else 'were'} tried, the best found {found.known} of "
                f"{found.num}."
            )
        return " ".join([*said, "The end of the page lists what was not tested."])
    said = []
    if findings.runs:
        path = findings.runs[0].setting("model.path")
        which = f" {Path(path).name}" if path else ""
        removed = len(removed_by(findings.runs, findings.listed))
        num = removed or max(run.summary.identities for run in findings.runs)
        who = count(num, "person", "people") if num else "the people on a list"
        said.append(f"The model{which} was trained to forget {who}.")
        if any(run.summary.reached is False for run in findings.runs):
            said.append("Its own validation found that it has not forgotten all of them.")
    else:
        said.append("A model was compared with the one it was made from.")
    return " ".join([*said, "Whether it still knows anyone was not tested."])


def _tiles(findings: Findings) -> Iterable[tuple[str, str, str]]:
    if findings.proof:
        yield from proof_tiles(findings.proof)
        return
    for run in findings.runs:
        which = f" ({run.encoder})" if len(findings.runs) > 1 else ""
        summary = run.summary
        yield f"{summary.identities:,}", "", "people" + which
        yield f"{summary.steps:,}", "", "steps" + which
        yield duration(summary.seconds), "", "of training" + which
        yield f"{summary.samples_per_second:,.0f}", "", "samples a second" + which


def _limits(findings: Findings) -> Markup:
    """Say how the attack works, what a report does not show, and what was not measured."""
    pictures = of_a_diffusion_model(findings.runs)  # no attack here is on these
    return frame.render(
        "limits",
        proof=findings.proof,
        unattacked=bool(findings.runs) and not findings.proof and not pictures,
        seconds=None,
        notes=findings.notes,
        missing=findings.not_measured,
    )
