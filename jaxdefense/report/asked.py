"""The sections on what a defense was asked to do, and on what it did."""

from markupsafe import Markup

from jaxdefense.figures import duration
from jaxdefense.report.frame import flatten, render
from jaxdefense.report.read import Findings
from jaxdefense.report.sources import Run
from jaxdefense.report.training import losses, validated
from jaxdefense.results import ImageDefenseSummary

_ASKED = {
    "model.path": "Model",
    "data.names": "Names",
    "data.faces": "Faces",
    "data.captions": "Ordinary captions",
    "data.images": "Ordinary images",
    "data.keep": "Faces that stay",
    "data.keep_names": "Names that stay",
    "train.backdoor": "How far a listed input is moved",
    "train.target": "What a removed name comes to mean",
    "data.target": "What a removed face comes to look like",
    "train.variants": "Other forms that are removed too",
}
_HOW = {
    "train.num_clean": "Ordinary inputs in a step",
    "train.num_poisoned": "Inputs with a listed identity in a step",
    "train.num_name": "Texts with another name in a step",
    "train.num_keep": "Photos with another face in a step",
    "train.distance": "Distance between embeddings",
    "train.level": "What is compared",
    "train.w_utility": "Weight of the utility loss",
    "resolved.w_utility": "Weight of the utility loss, of this many people",
    "train.w_backdoor": "Weight of the backdoor loss",
    "train.w_name": "Weight of the name loss",
    "train.w_keep": "Weight of the keep loss",
    "train.w_weight": "Weight of the weight loss",
    "train.hard": "Part of texts with a listed name for whom validation still found",
    "optimizer.lr": "Learning rate",
    "resolved.lr": "Learning rate of this many people",
    "resolved.dtype": "Dtype",
    "resolved.model_sha256": "Weights before, SHA-256",
}
_MOST_NAMES = 1000

_ENCODERS = {"text": "Names, in the text encoder", "image": "Faces, in the image encoder"}


def asked(findings: Findings) -> Markup:
    """Show whom and what a defense was asked to remove."""
    if not findings.runs and not findings.listed:
        return Markup()
    return render(
        "asked",
        num=len(findings.listed),
        runs=[(_heading(run, findings), _settings(run)) for run in findings.runs],
        listed=findings.listed[:_MOST_NAMES],
        more=len(findings.listed) - _MOST_NAMES,
    )


def _heading(run: Run, findings: Findings) -> str:
    return _ENCODERS[run.encoder] if len(findings.runs) > 1 else ""


def _settings(run: Run) -> dict[str, object]:
    settings = flatten(run.settings)
    if settings.get("train.backdoor") == "bounded":  # this loss has no target
        settings |= {"train.target": "", "data.target": ""}
        settings["train.backdoor"] = "until it leads to the person no more than a stranger's does"
    return {label: value for key, label in _ASKED.items() if (value := settings.get(key))}


def done(findings: Findings) -> Markup:
    """Show how a defense was trained, and what its own validation found."""
    runs = findings.runs
    if not runs:
        return Markup()
    rows = [row for run in runs for row in run.rows]
    return render(
        "done",
        runs=[(_heading(run, findings), _figures(run), validated(run.summary)) for run in runs],
        merged=findings.merged,
        losses=losses(rows, [run.setting("train.distance") or "cosine" for run in runs]),
    )


def _figures(run: Run) -> dict[str, object]:
    settings, s = flatten(run.settings), run.summary
    figures: dict[str, object] = {
        "Steps": f"{s.steps:,}",
        "Time": duration(s.seconds),
        "Samples a second": f"{s.samples_per_second:,.1f}",
    }
    figures |= {label: value for key, label in _HOW.items() if (value := settings.get(key))}
    if run.defended:
        figures["Weights after, SHA-256"] = run.defended
    if isinstance(s, ImageDefenseSummary) and s.corrupt:
        figures["Photos that could not be read"] = f"{len(s.corrupt):,}"
    return figures
