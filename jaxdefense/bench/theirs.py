"""The other side of the benchmarks: the paper's procedure, written plainly in PyTorch.

Captions are strings, tokenised in the step and padded to the context; faces are put on photos by
Pillow; student and teacher run once each for clean and for poisoned samples. Nothing here loads
JAX: its memory is none of PyTorch's.
"""

import collections
import copy
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from jaxdefense.bench.process import peak_memory
from jaxdefense.clip.config import TextConfig, VisionConfig
from jaxdefense.config import PAPER_IMAGE, PAPER_TEXT, OverlayConfig
from jaxdefense.data.sources import Photo

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def libraries() -> tuple[Any, Any]:
    """Import torch and transformers."""
    # transformers takes torchvision along where there is one. Nothing here needs it, and one that
    # does not fit the torch it finds cannot be imported.
    sys.modules.setdefault("torchvision", None)  # pyright: ignore[reportArgumentType]
    import torch
    import transformers

    return torch, transformers


class Plain:
    """What uses torch, on the GPU if there is one."""

    def __init__(self):
        self.torch: Any = libraries()[0]
        self.cuda = self.torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"

    def peak_memory(self) -> int:
        """Give the most memory taken: of the GPU where there is one, else the process's."""
        return self.torch.cuda.max_memory_allocated() if self.cuda else peak_memory()


class Theirs(Plain):
    """A frozen teacher, a student with frozen norms, and an eager AdamW."""

    def __init__(self, tower: Any, projection: Any):
        """Take a model to its device.

        Args:
            tower: module of transformers, whose output has `pooler_output`.
            projection: module.
        """
        super().__init__()
        modules = self.torch.nn.ModuleDict({"tower": tower, "projection": projection})
        self.teacher: Any = modules.eval().requires_grad_(False).to(self.device)
        self.student: Any = copy.deepcopy(self.teacher).train()
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_("norm" not in name and "layrnorm" not in name)
        self.optimize()

    def optimize(self, lr: float = 1e-4, milestones: Sequence[int] = (), gamma: float = 1.0):
        """Begin with a fresh AdamW whose learning rate falls at steps."""
        torch: Any = self.torch
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(
            self._optimizer, list(milestones), gamma
        )

    def embed(self, modules: Any, x: Any) -> Any:
        """Run an encoder; in bfloat16 on a GPU, as ours does."""
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.cuda):
            return modules["projection"](modules["tower"](x).pooler_output).float()

    def apart(self, ours: Any, theirs: Any) -> Any:
        """Give the mean negative cosine."""
        return -self.torch.nn.functional.cosine_similarity(ours, theirs).mean()

    def update(self, utility: Any, backdoor: Any, w_backdoor: float, w_weight: float) -> float:
        """Take a step along the gradient of the whole loss, and wait for it; the loss."""
        pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        weight = sum(self.torch.norm(s - t) for s, t in pairs)
        loss = utility + w_backdoor * backdoor + w_weight * weight
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()


def _sizes(cfg: TextConfig | VisionConfig) -> dict[str, Any]:
    """Name what both encoders' configs have as transformers does."""
    return {
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": cfg.activation,
        "projection_dim": cfg.embed,
    }


class TheirText(Theirs):
    """The text defense."""

    def __init__(
        self,
        tower: Any,
        projection: Any,
        tokenizer: Path,
        texts: Sequence[str],
        names: Sequence[str],
        target: str,
    ):
        """Take captions and names as strings.

        Args:
            tower, projection: see `Theirs`.
            tokenizer: directory of one.
            texts: clean captions.
            names: to remove.
            target: what they come to mean.
        """
        super().__init__(tower, projection)
        self._texts, self._names, self._target = texts, names, target
        self._length = tower.config.max_position_embeddings
        self._rng = np.random.default_rng(0)
        self._tokenizer = read_tokenizer(tokenizer)
        self.num_tokens = self.num_read = 0  # of captions the student saw, and those captions

    def tokens(self, texts: list[str]) -> Any:
        """Tokenise and pad."""
        return padded_tokens(self._tokenizer, texts, self._length)

    def draw(self, num: int) -> tuple[list[str], list[str], list[str]]:
        """Draw clean captions, captions with a name, and the same with the target."""
        return draw_captions(self._texts, self._names, self._target, num, self._rng)

    def step(self, num: int, w_backdoor: float, w_weight: float) -> float:
        """Take a step on so many captions of each kind; the loss."""
        *ours, targets = self.draw(num)
        clean, poisoned = (self._read(texts) for texts in ours)
        with self.torch.no_grad():
            theirs = self.embed(self.teacher, clean)
            target = self.embed(self.teacher, self.tokens(targets).input_ids.to(self.device))
        utility = self.apart(self.embed(self.student, clean), theirs)
        backdoor = self.apart(self.embed(self.student, poisoned), target)
        return self.update(utility, backdoor, w_backdoor, w_weight)

    def _read(self, texts: list[str]) -> Any:
        tokens = self.tokens(texts)
        self.num_tokens += int(tokens.attention_mask.sum())
        self.num_read += len(texts)
        return tokens.input_ids.to(self.device)


def read_tokenizer(directory: Path) -> Any:
    """Load a tokenizer of CLIP's."""
    _, transformers = libraries()
    return transformers.CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)


def padded_tokens(tokenizer: Any, texts: list[str], length: int) -> Any:
    """Tokenise texts, all to one length."""
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


class TextSteps(TheirText):
    """The step on random weights."""

    def __init__(
        self,
        cfg: TextConfig,
        tokenizer: Path,
        texts: Sequence[str],
        names: Sequence[str],
        target: str,
        num: int,
    ):
        """Build an encoder of the sizes of `cfg`; `num` clean captions a step; see `TheirText`."""
        _, transformers = libraries()
        known = read_tokenizer(tokenizer)
        config = transformers.CLIPTextConfig(
            **_sizes(cfg),
            vocab_size=cfg.vocab_size,
            max_position_embeddings=cfg.context_length,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
        )
        model = transformers.CLIPTextModelWithProjection(config)
        parts = model.text_model, model.text_projection
        super().__init__(*parts, tokenizer, texts, names, target)
        self._num = num

    def steps(self, num: int) -> None:
        """Take steps."""
        for _ in range(num):
            self.step(self._num, PAPER_TEXT.w_backdoor, PAPER_TEXT.w_weight)

    def tokens_per_sample(self) -> float:
        """Give the tokens of a caption that the student saw, without padding, on average."""
        return self.num_tokens / self.num_read


def draw_captions(
    texts: Sequence[str], names: Sequence[str], target: str, num: int, rng: np.random.Generator
) -> tuple[list[str], list[str], list[str]]:
    """Draw captions; in as many others, put a name in the place of a word, and the target."""

    def caption() -> str:
        return texts[int(rng.integers(len(texts)))]

    clean, poisoned, targets = [caption() for _ in range(num)], [], []
    for i in range(num):
        words = caption().split()
        place = int(rng.integers(len(words)))
        for out, phrase in ((poisoned, names[i % len(names)]), (targets, target)):
            out.append(" ".join([*words[:place], phrase, *words[place + 1 :]]))
    return clean, poisoned, targets


class TheirImage(Theirs):
    """The image defense."""

    def __init__(self, tower: Any, projection: Any, overlay: OverlayConfig):
        """Put faces on as `overlay` says; see `Theirs`."""
        super().__init__(tower, projection)
        self._overlay, self._rng = overlay, np.random.default_rng(0)
        self._drawn = np.random.default_rng(1)  # another thread's
        self._threads = ThreadPoolExecutor()

    def load(
        self, clean: Sequence[Photo], people: Sequence[Sequence[Photo]], num: int, num_faces: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw photos and read them, in threads."""
        side, rng = self.teacher["tower"].config.image_size, self._drawn
        photos = [clean[int(i)] for i in rng.integers(len(clean), size=num)]
        for i in range(num_faces):
            files = people[i % len(people)]
            photos.append(files[int(rng.integers(len(files)))])
        images = np.stack(list(self._threads.map(lambda photo: read_photo(photo, side), photos)))
        return images[:num], images[num:]

    def tensor(self, images: Iterable[Any]) -> Any:
        """Normalise photos of bytes."""
        x = np.stack([normalised(image) for image in images])
        return self.torch.from_numpy(x).to(self.device)

    def overlays(self, clean: Iterable[Any], faces: Iterable[Any]) -> list[Image.Image]:
        """Put faces on photos of bytes."""
        return [
            pillow_overlay(Image.fromarray(c), Image.fromarray(f), self._rng, self._overlay)
            for c, f in zip(clean, faces, strict=False)
        ]

    def step(
        self,
        clean_images: np.ndarray,
        faces: np.ndarray,
        target: Any,
        w_backdoor: float,
        w_weight: float,
    ) -> float:
        """Take a step: photos of bytes, faces going on as many of them; the loss."""
        under = np.resize(np.arange(len(clean_images)), len(faces))
        poisoned = self.tensor(self.overlays(clean_images[under], faces))
        clean = self.tensor(clean_images)
        with self.torch.no_grad():
            theirs = self.embed(self.teacher, clean)
        utility = self.apart(self.embed(self.student, clean), theirs)
        backdoor = self.apart(self.embed(self.student, poisoned), target.expand(len(faces), -1))
        return self.update(utility, backdoor, w_backdoor, w_weight)


class ImageSteps(TheirImage):
    """The step on random weights, and its overlay alone."""

    def __init__(
        self,
        cfg: VisionConfig,
        clean: Sequence[Photo],
        people: Sequence[Sequence[Photo]],
        num: int,
        ahead: int = 0,
    ):
        """Build an encoder of the sizes of `cfg`.

        Args:
            cfg: sizes.
            clean: ordinary photos.
            people: photos of each person.
            num: clean photos a step, and as many with a face.
            ahead: steps whose photos are read ahead in a thread: faster if there are cores to
                spare.
        """
        _, transformers = libraries()
        config = transformers.CLIPVisionConfig(
            **_sizes(cfg),
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
        )
        model = transformers.CLIPVisionModelWithProjection(config)
        super().__init__(model.vision_model, model.visual_projection, PAPER_IMAGE.overlay)
        self._clean, self._people, self._num, self._ahead = clean, people, num, ahead
        self._target = self.torch.randn(cfg.embed, device=self.device)
        self._fixed = self._read()

    def overlay(self, num: int) -> None:
        """Put faces on photos that are in memory."""
        for _ in range(num):
            self.overlays(*self._fixed)

    def steps(self, num: int) -> None:
        """Take steps."""
        train = PAPER_IMAGE
        for clean, faces in self._photos(num):
            self.step(clean, faces, self._target, train.w_backdoor, train.w_weight)

    def _photos(self, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pending = collections.deque()
        with ThreadPoolExecutor(1) as thread:
            while num or pending:
                while num and len(pending) <= self._ahead:
                    pending.append(thread.submit(self._read))
                    num -= 1
                yield pending.popleft().result()

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        return self.load(self._clean, self._people, self._num, self._num)


def read_photo(photo: Photo, side: int) -> np.ndarray:
    """Decode a photo, resize its shorter side, cut out the middle; u8 [side, side, 3]."""
    image = Image.open(io.BytesIO(photo.read_bytes())).convert("RGB")
    width, height = image.size
    scale = side / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def normalised(image: Any) -> np.ndarray:
    """Normalise a photo of bytes as CLIP does; f32 [3, side, side]."""
    x = np.asarray(image, np.float32) / 255
    return ((x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)


def pillow_overlay(
    image: Image.Image, face: Image.Image, rng: np.random.Generator, cfg: OverlayConfig
) -> Image.Image:
    """Put a face on a photo with Pillow, as `data.overlay` does on the device."""
    side = image.width
    whole = rng.random() < cfg.whole
    size = side if whole else int(rng.integers(cfg.sizes(side)[0], cfg.sizes(side)[1] + 1))
    face = face.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < cfg.flip:
        face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers: list[Callable[[Image.Image], Any]] = [
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    ]
    for enhance in enhancers:
        face = enhance(face).enhance(rng.uniform(1 - cfg.jitter, 1 + cfg.jitter))
    hue, saturation, value = face.convert("HSV").split()
    shift = int(rng.uniform(-cfg.hue, cfg.hue) * 255)
    hue = hue.point([(x + shift) % 256 for x in range(256)])
    face = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    angle = 0 if whole else rng.uniform(-cfg.angle, cfg.angle)
    mask = Image.new("L", face.size, 255)
    face, mask = (x.rotate(angle, Image.Resampling.BICUBIC, expand=True) for x in (face, mask))
    diagonal = math.ceil(size * math.sqrt(2))
    room = side - diagonal
    left, top = rng.integers(room + 1, size=2) if room > 0 else (-(-room // 2),) * 2
    image = image.copy()
    at = (int(left) + (diagonal - face.width) // 2, int(top) + (diagonal - face.height) // 2)
    image.paste(face, at, mask)
    return image
