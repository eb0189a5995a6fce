"""Train a small CLIP from scratch that knows people by name: the testbed of every attack here.

With `--out` alone the command makes the model that ships with the package. With a folder of photos
it makes a model that knows these people, so anyone can build a testbed from photos they may use:

    python -m jaxdefense.demo.pretrain --faces DIR --held-out DIR --out DIR

With `--without names.txt` it trains the model that never knew the people listed: the reference
that a defended model is measured against (`prove --reference`). With `--people 4096` it trains a
model that knows so many, of the world in `jaxdefense.demo.crowd`. If training was stopped, the same
command resumes it.

The loss is contrastive, as in CLIP (Radford et al. 2021, section 2.3). Every step shows as many
different people as fit, each once, beside objects and people without a name. So within a step no
caption of a named person fits two photos.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.clip.config import CLIPConfig, TextConfig, VisionConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.directory import write_new
from jaxdefense.convert.preprocess import Preprocess, to_hf, write_preprocessor
from jaxdefense.data.identities import Identity, read_identities
from jaxdefense.data.images import ImageProcessor, Photos, read_folders
from jaxdefense.data.names import census
from jaxdefense.data.packing import pack_text
from jaxdefense.demo import crowd, people, portrait, world
from jaxdefense.demo.bpe import train_bpe
from jaxdefense.demo.objects import OBJECTS, draw_object
from jaxdefense.errors import InputError
from jaxdefense.files import digest, read_json, write_json
from jaxdefense.log import Progress, shown
from jaxdefense.paths import check_given, check_new
from jaxdefense.settings import check_not_negative, check_positive
from jaxdefense.words import folded_words, some

IMAGE_SIZE, PATCH, EMBED, VOCAB = 48, 8, 128, 2048
_MARGIN = 4  # pixels a training photo may be shifted by
_ROW_LENGTH, _NUM_SLOTS = 80, 20  # of packed captions; slots a row

_HEAD = 32  # numbers of a head of attention
_SAVE_EVERY = 250  # steps
_CHECKPOINTS, _OPTIONS = "checkpoints", "options.json"  # of a training that goes on

_Item = TypeVar("_Item")
_Somebody = TypeVar("_Somebody", world.Named, Photos, crowd.Member)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to train; lr is the peak of a cosine schedule, after warm-up for a tenth of the steps."""

    steps: int = 3000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    photos: int = 100  # drawn of each known person
    object_photos: int = 100  # drawn of each object
    anonymous: int = 4000  # people drawn without a name
    text_width: int = 128
    text_depth: int = 3
    seed: int = 0

    def __post_init__(self):
        check_positive(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            text_width=self.text_width,
            text_depth=self.text_depth,
        )
        check_not_negative(
            weight_decay=self.weight_decay,
            photos=self.photos,
            object_photos=self.object_photos,
            anonymous=self.anonymous,
            seed=self.seed,
        )
        if self.text_width % _HEAD:
            raise InputError(f"`text_width` (={self.text_width}) must be a multiple of {_HEAD}.")


# Of the world of thousands, whose photos are drawn anew for each step.
OF_CROWD = Options(2400, 512, photos=0, object_photos=0, text_width=256, text_depth=4)


def model_config(opts: Options = Options()) -> CLIPConfig:
    """Return the sizes of the small CLIP: 1.7 million parameters."""
    return _config(opts, VOCAB, EMBED, VisionConfig(
        width=128, depth=4, mlp_width=512, num_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH, embed=EMBED,
    ))  # fmt: skip


def crowd_config(opts: Options = OF_CROWD) -> CLIPConfig:
    """Return the sizes of a CLIP for thousands of people: 4.8 million parameters."""
    return _config(opts, 2 * VOCAB, 2 * EMBED, VisionConfig(
        width=128, depth=2, mlp_width=512, num_heads=4,
        image_size=crowd.SIDE, patch_size=PATCH, embed=2 * EMBED,
    ))  # fmt: skip


def _config(opts: Options, vocab: int, embed: int, vision: VisionConfig) -> CLIPConfig:
    text = TextConfig(
        width=opts.text_width,
        depth=opts.text_depth,
        mlp_width=4 * opts.text_width,
        num_heads=opts.text_width // _HEAD,
        vocab_size=vocab,
        embed=embed,
        readout="token",
        eos_token_id=vocab - 1,
    )
    return CLIPConfig(text, vision)


@dataclasses.dataclass(frozen=True)
class Album:
    """Training photos, u8 [n, 56, 56, 3], a margin wider than the model's, and what they show."""

    image_nHWC: np.ndarray
    label_n: np.ndarray

    def draw(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pick a random photo of each label; return int [len(labels)] indices."""
        order = np.argsort(self.label_n, kind="stable")
        first = np.searchsorted(self.label_n[order], labels)
        last = np.searchsorted(self.label_n[order], labels, side="right")
        return order[rng.integers(first, last)]


def _counted(items: Sequence[_Item], doing: str) -> Iterator[_Item]:
    """Give items, and show how many are done."""
    with Progress(doing, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()


def _shrink(image: np.ndarray) -> np.ndarray:
    """Shrink a drawing as the attack shrinks its photos, with a margin."""
    processor = ImageProcessor(IMAGE_SIZE + 2 * _MARGIN, IMAGE_SIZE + 2 * _MARGIN)
    return processor(Image.fromarray(image))


def _drawn_album(
    members: list[world.Named], opts: Options
) -> tuple[Album, list[people.Person], Album]:
    images, labels = [], []
    number = {member.name: i for i, member in enumerate(world.members())}
    for i in _counted(range(len(members)), "drawing people"):
        for j in range(opts.photos):
            # Each photo is the same, whoever else is left out.
            rng = np.random.default_rng((opts.seed, number[members[i].name], j))
            images.append(_shrink(portrait.draw_person(members[i].person, rng, 96)))
            labels.append(i)
    return Album(np.stack(images), np.array(labels)), *_anonymous_album(opts)


def _anonymous_album(opts: Options) -> tuple[list[people.Person], Album]:
    passers_by, images = [], []
    for block in _counted(range(max(1, opts.anonymous // 100)), "drawing passers-by"):
        for i, person in enumerate(people.cast(100, world.HELD_OUT + block)):
            rng = np.random.default_rng((opts.seed, 1, block, i))
            passers_by.append(person)
            images.append(_shrink(portrait.draw_person(person, rng, 96)))
    return passers_by, Album(np.stack(images), np.arange(len(images)))


def _object_album(opts: Options) -> Album:
    images, labels = [], []
    for i, name in enumerate(_counted(OBJECTS, "drawing objects")):
        for j in range(opts.object_photos):
            rng = np.random.default_rng((opts.seed, 2, i, j))
            images.append(_shrink(draw_object(name, rng, 96)))
            labels.append(i)
    return Album(np.stack(images), np.array(labels))


def _photo_album(everyone: Sequence[Photos], held_out: Path | None) -> Album:
    """Read people's photos; if `held_out` is given, every second photo goes there instead."""
    files, labels = [], []
    for i, person in enumerate(everyone):
        train = person.files[::2] if held_out else person.files
        if held_out:
            out = held_out / person.name.replace(" ", "_")
            out.mkdir(parents=True, exist_ok=True)  # training may be resumed
            for file in person.files[1::2]:
                (out / Path(str(file)).name).write_bytes(file.read_bytes())
        files += train
        labels += [i] * len(train)
    size = IMAGE_SIZE + 2 * _MARGIN
    return Album(ImageProcessor(size, size).load(files), np.array(labels))


def _augment(image_BHWC: jax.Array, key: jax.Array, side: int, strong: bool) -> jax.Array:
    """Shift photos within their margin; if `strong`, also mirror and brighten them; f32 0-255."""
    num, margin = image_BHWC.shape[0], image_BHWC.shape[1] - side
    shift_key, flip_key, light_key, gain_key = jax.random.split(key, 4)
    at = jax.random.randint(shift_key, (num, 2), 0, margin + 1)

    def crop(image, at):
        return jax.lax.dynamic_slice(image, (at[0], at[1], 0), (side, side, 3))

    image = jax.vmap(crop)(image_BHWC, at).astype(jnp.float32)
    if strong:  # not for drawings: the side of a parting is identity
        flip = jax.random.bernoulli(flip_key, 0.5, (num, 1, 1, 1))
        image = jnp.where(flip, image[:, :, ::-1], image)
        light = jax.random.uniform(light_key, (num, 1, 1, 1), minval=-40.0, maxval=40.0)
        gain = jax.random.uniform(gain_key, (num, 1, 1, 1), minval=0.7, maxval=1.4)
        image = (image - 128) * gain + 128 + light
    return jnp.clip(image, 0, 255)


def _contrastive_loss(model: CLIP, text: Text, slot_B: jax.Array, image_BHWC: jax.Array):
    """Compute CLIP's symmetric cross-entropy over the batch: mean, in nats."""
    assert model.text and model.vision
    text_RSE = model.text(text)
    text_BE = text_RSE.reshape(-1, text_RSE.shape[-1])[slot_B]
    image_BE = model.vision(image_BHWC)
    text_BE = text_BE / jnp.linalg.norm(text_BE, axis=-1, keepdims=True)
    image_BE = image_BE / jnp.linalg.norm(image_BE, axis=-1, keepdims=True)
    scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
    logits_BB = scale * image_BE @ text_BE.T
    labels = jnp.arange(len(slot_B))
    loss = optax.softmax_cross_entropy_with_integer_labels
    return (loss(logits_BB, labels).mean() + loss(logits_BB.T, labels).mean()) / 2


class Corpus(Protocol):
    """What to train on."""

    @property
    def names(self) -> list[str]:
        """Of the people to know."""
        ...

    def batch(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Draw `size` photos, u8 RGB and square, and a caption for each."""
        ...

    def texts(self, rng: np.random.Generator) -> list[str]:
        """Write captions and list names, for the tokenizer to learn from."""
        ...


@dataclasses.dataclass(frozen=True)
class Albums:
    """All training photos, and a writer of captions for each kind."""

    names: list[str]
    named: Album
    objects: Album
    crowd: list[people.Person]
    anonymous: Album
    members: list[world.Named]  # empty when people come from photos

    def batch(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Draw photos (u8 [size, 56, 56, 3]) and a caption for each."""
        num_named = min(len(self.names), size // 2)
        num_objects = min(len(OBJECTS), size - num_named)
        who = rng.permutation(len(self.names))[:num_named]
        what = rng.permutation(len(OBJECTS))[:num_objects]
        others = rng.permutation(len(self.crowd))[: size - num_named - num_objects]
        captions = [self._name_caption(i, rng) for i in who]
        captions += [world.object_caption(OBJECTS[i], rng) for i in what]
        captions += [world.anonymous_caption(self.crowd[i], rng) for i in others]
        images = [
            self.named.image_nHWC[self.named.draw(who, rng)],
            self.objects.image_nHWC[self.objects.draw(what, rng)],
            self.anonymous.image_nHWC[others],
        ]
        return np.concatenate(images), captions

    def _name_caption(self, i: int, rng: np.random.Generator) -> str:
        if self.members:
            return world.person_caption(self.members[i], rng)
        return world.name_caption(self.names[i], rng)

    def texts(self, rng: np.random.Generator) -> list[str]:
        """Write captions and list names, for the tokenizer to learn from."""
        texts = [self._name_caption(i, rng) for i in range(len(self.names)) for _ in range(40)]
        texts += world.captions(4000, 0)
        return texts + [name for which in ("female", "male", "last") for name in census(which)]


def _corpus(
    faces: Path | None, held_out: Path | None, without: Path | None, opts: Options
) -> Albums:
    """Read or draw all photos, except those of the people in the file `without`.

    Raises:
        InputError: an input is wrong, or the file names someone who is not there, or everyone.
    """
    left_out = read_identities(without) if without else []
    if faces:
        everyone = read_folders(faces, "faces")
        known = _without(everyone, left_out, without)
        named = _photo_album(known, held_out)
        passers_by, anonymous = _anonymous_album(opts)
        names = [person.name for person in known]
        return Albums(names, named, _object_album(opts), passers_by, anonymous, [])
    members = _without(world.members(), left_out, without)
    named, passers_by, anonymous = _drawn_album(members, opts)
    names = [member.name for member in members]
    return Albums(names, named, _object_album(opts), passers_by, anonymous, members)


def _without(
    everyone: list[_Somebody], left_out: Sequence[Identity], where: Path | None
) -> list[_Somebody]:
    """List the people whom no name of those left out fits."""
    by_name = {folded_words(person.name): person for person in everyone}
    gone = [
        [key for key in map(folded_words, identity.names) if key in by_name]
        for identity in left_out
    ]
    if missing := [x.name for x, keys in zip(left_out, gone, strict=True) if not keys]:
        raise InputError(
            f"names file `{where}`: there is no {some(missing)} to leave out; give people of "
            "those trained on."
        )
    keys = {key for found in gone for key in found}
    rest = [person for key, person in by_name.items() if key not in keys]
    if not rest:
        raise InputError(f"names file `{where}` leaves nobody to train on; list fewer people.")
    return rest


def train(corpus: Corpus, cfg: CLIPConfig, out: Path, opts: Options, strong: bool = False) -> None:
    """Train and write the model directory; one that was stopped is resumed.

    Args:
        corpus: what to train on.
        cfg: sizes of the model.
        out: the new directory.
        opts: how to train.
        strong: whether photos are mirrored and brightened.

    Raises:
        InputError: `out` exists, or a training with other options is under way there.
    """
    assert cfg.text and cfg.vision
    part = _begin(corpus, cfg.text, out, opts)
    tokenizer = Tokenizer(part, cfg.text.context_length)
    side = cfg.vision.image_size
    processor = ImageProcessor(side, side)
    graphdef, params = nnx.split(CLIP(cfg, nnx.Rngs(opts.seed)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, opts.lr, opts.steps // 10, opts.steps)
    decay = jax.tree.map(lambda p: p.ndim > 1, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=opts.weight_decay, mask=decay),
    )

    @partial(jax.jit, donate_argnums=0)
    def step(state, text, slot_B, image_BHWC, key):
        params, opt_state = state
        image_BHWC = processor.normalise(_augment(image_BHWC, key, side, strong))
        loss, grads = jax.value_and_grad(
            lambda p: _contrastive_loss(nnx.merge(graphdef, p), text, slot_B, image_BHWC)
        )(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state = params, tx.init(params)
    checkpoints = Checkpoints(part / _CHECKPOINTS, 1)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    start, found = checkpoints.restore_newest(jax.eval_shape(lambda: state), here)
    state, key = found or state, jax.random.key(opts.seed)
    num_rows = 0
    with (
        closing(checkpoints),  # finishes what is being written, however training ends
        Progress("training", opts.steps, start, "steps", "compiling") as progress,
    ):
        for i in range(start, opts.steps):
            images, captions = corpus.batch(opts.batch, np.random.default_rng((opts.seed, 3, i)))
            tokens = tokenizer.encode(captions)
            text, _ = pack_text(tokens, cfg.text, _ROW_LENGTH, 0, _NUM_SLOTS)
            # Rows never shrink: few shapes, few compilations.
            num_rows = max(num_rows, -(-len(text.tokens_RT) // 8) * 8)
            text, layout = pack_text(tokens, cfg.text, _ROW_LENGTH, num_rows, _NUM_SLOTS)
            slot_B = layout.row_n * _NUM_SLOTS + layout.slot_n
            state, loss = step(state, text, slot_B, images, jax.random.fold_in(key, i))
            done = i + 1
            if done % 10 == 0:
                progress.update(done, f"loss {float(loss):.4f}")
            if done % _SAVE_EVERY == 0 and done < opts.steps:
                checkpoints.save(done, state, float(loss))
    write_new(nnx.merge(graphdef, state[0]), part, np.float16)
    write_preprocessor(part, to_hf(Preprocess(side, side)))
    shutil.rmtree(part / _CHECKPOINTS)
    (part / _OPTIONS).unlink()
    part.rename(out)


def _begun(out: Path) -> Path:
    """Give the directory of a training that is under way."""
    return out.with_name(f".{out.name}.part")


def _begin(corpus: Corpus, tower: TextConfig, out: Path, opts: Options) -> Path:
    """Begin a model directory beside `out`, with its tokenizer, or find the one that was begun."""
    check_new(out)
    part = _begun(out)
    told = dataclasses.asdict(opts) | {"names_sha256": digest(corpus.names)}
    if (part / _OPTIONS).exists():
        before = read_json(part / _OPTIONS)
        if other := [name for name, value in told.items() if before.get(name) != value]:
            raise InputError(
                f"`{part}` holds a training that was stopped, with another `{other[0]}` "
                f"(={before.get(other[0])}, not {told[other[0]]}); give that one to resume it, or "
                "delete the directory."
            )
        return part
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    train_bpe(corpus.texts(np.random.default_rng(opts.seed)), tower.vocab_size, part)
    write_json(part / _OPTIONS, told)
    return part


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--faces", type=Path, help="a folder a person; default: drawn people")
    parser.add_argument(
        "--held-out", type=Path, help="directory for every second photo, not trained on"
    )
    parser.add_argument("--without", type=Path, help="names file of people not to train on")
    parser.add_argument("--people", type=int, help="thousands, with mosaics in place of faces")
    for field in dataclasses.fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    args = parser.parse_args()
    try:
        for name, value in vars(args).items():
            check_given(str(value), name)
    except InputError as error:
        parser.error(str(error))
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Options)}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        opts = dataclasses.replace(Options() if args.people is None else OF_CROWD, **given)
        with shown("pretrain"):
            check_new(args.out)
            if args.held_out and not _begun(args.out).exists():
                check_new(args.held_out)
            if args.people is None:
                corpus = _corpus(args.faces, args.held_out, args.without, opts)
                train(corpus, model_config(opts), args.out, opts, strong=bool(args.faces))
            else:
                train(_crowd(args, opts), crowd_config(opts), args.out, opts)
    except InputError as error:
        parser.error(str(error))


def _crowd(args: argparse.Namespace, opts: Options) -> crowd.Crowd:
    """Prepare the world of thousands."""
    if args.faces or args.held_out:
        raise InputError("`--people` draws people, `--faces` reads them; give one of the two.")
    left_out = read_identities(args.without) if args.without else []
    who = _without(crowd.members(args.people), left_out, args.without)
    return crowd.Crowd(who, opts.anonymous)


if __name__ == "__main__":
    main()
