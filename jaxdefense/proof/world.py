"""The models of a proof, and the attack on them that its parts share."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdefense.cache import ArrayCache
from jaxdefense.convert.directory import check_same_sizes
from jaxdefense.data.images import Photos
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import digest
from jaxdefense.idia.attack import AttackResult, Evidence, attack_with, gather
from jaxdefense.idia.conditions import photos_digest
from jaxdefense.idia.statistics import majority
from jaxdefense.proof.config import ProveConfig
from jaxdefense.proof.found import means
from jaxdefense.proof.inputs import Inputs
from jaxdefense.results import BEFORE, DEFENDED, PROOF_RATES, RETRAINED, Groups
from jaxdefense.sharding import make_mesh


@dataclasses.dataclass
class World:
    """The models, the people, and what the attack found of them so far.

    Fields:
        cfg, inputs: of the proof.
        models: `BEFORE`, `DEFENDED` and, with a reference, `RETRAINED`.
        digests: SHA-256 of the weights of each.
    """

    cfg: ProveConfig
    inputs: Inputs
    models: dict[str, Embedder]
    digests: dict[str, str]
    _evidence: dict[str, Evidence] = dataclasses.field(default_factory=dict)
    _found: dict[str, AttackResult] = dataclasses.field(default_factory=dict)

    def evidence(self, name: str) -> Evidence:
        """Embed everybody's photos with a model, by its name."""
        if name not in self._evidence:
            self._evidence[name] = self.embedded(self.models[name])
        return self._evidence[name]

    def found(self, name: str) -> AttackResult:
        """Attack a model, by its name."""
        if name not in self._found:
            self._found[name] = self.attacked(self.models[name], self.evidence(name))
        return self._found[name]

    def embedded(self, model: Embedder) -> Evidence:
        """Embed everybody's photos with any model."""
        return gather(model, self.inputs.people, max_corrupt=self.cfg.max_corrupt)

    def attacked(self, model: Embedder, evidence: Evidence | None = None) -> AttackResult:
        """Attack any model."""
        return attack_with(
            model,
            evidence or self.embedded(model),
            self.inputs.candidates,
            threshold=self.cfg.threshold,
            templates=self.inputs.templates,
            block=self.cfg.candidate_block,
        )

    def by_group(self, value_I: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
        """Split a value of each person by group."""
        value_I = np.asarray(value_I, np.float64)
        return {group: value_I[who] for group, who in self.inputs.groups.items()}

    def means(self, figure: str, value_I: Sequence[float] | np.ndarray) -> Groups:
        """Average a figure's value of each person by group."""
        return means(self.by_group(value_I), figure in PROOF_RATES)


def rates(found: AttackResult) -> dict[str, np.ndarray]:
    """Give what an attack found as figures: a value in [0, 1] of each person, f64 [I]."""
    correct_I = np.asarray(found.correct, np.float64)
    return {
        "recognised": (correct_I >= found.threshold).astype(np.float64),
        "recognised_majority": (correct_I >= majority(found.num_templates)).astype(np.float64),
        "photos_right": np.asarray(found.photos_right, np.float64),
        "templates": correct_I / found.num_templates,
    }


def load(cfg: ProveConfig, inputs: Inputs, cache: ArrayCache | None = None) -> World:
    """Load the models, and check that they belong together.

    Raises:
        InputError: a model cannot be read, has other sizes than the teacher or lacks an encoder; or
            the teacher is not the model that the run was made from.
    """
    mesh: Mesh = make_mesh(**vars(cfg.mesh), devices=jax.devices())
    cache = cache or ArrayCache(cfg.cache_dir)
    paths = {BEFORE: inputs.told.teacher, DEFENDED: cfg.model.path, RETRAINED: cfg.reference}
    models = {
        name: Embedder(dataclasses.replace(cfg.model.measured(), path=path), cfg.batch, mesh, cache)
        for name, path in paths.items()
        if path
    }
    before, defended = models[BEFORE].directory, models[DEFENDED].directory
    check_same_sizes(before, inputs.told.teacher, defended, cfg.model.path)
    digests = {name: model.directory.digest() for name, model in models.items()}
    if inputs.told.teacher_sha256 not in ("", digests[BEFORE]):
        raise InputError(
            f"`teacher` (={before.source}) is not the model that the run of `model.path` "
            f"(={cfg.model.path}) was made from: their weights differ; give that one."
        )
    for name, model in models.items():
        if not (model.directory.cfg.text and model.directory.cfg.vision):
            raise InputError(
                f"`{model.directory.source}` ({name}) has one encoder only; the proof puts photos "
                "to names: give a model with both."
            )
    return World(cfg, inputs, models, digests)


def shared(inputs: Inputs) -> dict[str, object]:
    """Give what must be the same in all processes, and in a proof that is resumed."""
    pairs, labels = inputs.pairs, inputs.labels
    captions, photos = list[str](), ""
    if pairs is not None:
        every = enumerate(pairs.captions)
        captions = [f"{i}\t{text}" for i, texts in every for text in texts]
        photos = on_first(lambda: photos_digest(Photos("", pairs.photos)))
    classes = on_first(lambda: [f"{c.name}\t{photos_digest(c)}" for c in inputs.classes])
    return {
        "conditions": inputs.conditions,
        "groups": {group: inputs.names(group) for group in inputs.groups},
        "absent": inputs.absent,
        "names": [list(identity.names) for identity in inputs.told.identities],
        "captions_sha256": digest(captions),
        "pairs_sha256": photos,
        "classes_sha256": digest(classes),
        "labels_sha256": digest(f"{' '.join(name)}\t{label}" for name, label in labels.items()),
    }
