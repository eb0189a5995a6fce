"""A whole defense in plain PyTorch, from files to a model directory, for the benchmarks."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdefense.bench.process import peak_memory
from jaxdefense.bench.theirs import TheirImage, TheirText, libraries, read_photo
from jaxdefense.config import DefendImageConfig, DefendTextConfig

_BATCH = 256


class TheirRun:
    """Read the checkpoint and the data, train, write the checkpoint."""

    def __init__(self, cfg: DefendTextConfig | DefendImageConfig):
        """Take the settings of our run."""
        self._cfg, self._loop = cfg, None

    def run(self, out: str) -> dict[str, float]:
        """Do it all, into a directory; seconds of each phase."""
        lap = laps()
        torch, transformers = libraries()
        kind = transformers.CLIPModel
        phases = {"import": lap()}
        cfg, source = self._cfg, Path(self._cfg.model.path)
        # In f32 whatever is stored: on a CPU f16 takes many times as long.
        model = kind.from_pretrained(str(source), local_files_only=True, dtype=torch.float32)
        text = isinstance(cfg, DefendTextConfig)
        loop, step = _text(cfg, model, source) if text else _image(cfg, model)
        self._loop: Any = loop
        phases["read"] = lap()
        o = cfg.optimizer
        loop.optimize(o.lr, [int(x) for x in o.milestones], o.gamma)
        for _ in range(cfg.train.steps):
            step()
        phases["steps"] = lap()
        if text:
            model.text_model, model.text_projection = loop.student.values()
        else:
            model.vision_model, model.visual_projection = loop.student.values()
        model.save_pretrained(out)
        for file in source.iterdir():
            if file.suffix != ".safetensors" and not (Path(out) / file.name).exists():
                shutil.copyfile(file, Path(out) / file.name)
        phases["write"] = lap()
        return phases

    def peak_memory(self) -> int:
        """Give the most memory taken: of the GPU where there is one, else the process's."""
        return self._loop.peak_memory() if self._loop else peak_memory()


def _text(cfg: DefendTextConfig, model: Any, source: Path) -> tuple[TheirText, Callable[[], Any]]:
    names, texts = (
        [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for path in (cfg.data.names, cfg.data.captions)
    )
    clean = [text for text in texts if not any(name.lower() in text.lower() for name in names)]
    t = cfg.train
    loop = TheirText(model.text_model, model.text_projection, source, clean, names, t.target)
    return loop, lambda: loop.step(t.num_clean, t.w_backdoor, t.w_weight)


def _image(cfg: DefendImageConfig, model: Any) -> tuple[TheirImage, Callable[[], Any]]:
    t, part = cfg.train, cfg.data.trigger_fraction
    folders = [sorted(x.iterdir()) for x in sorted(Path(cfg.data.faces).iterdir()) if x.is_dir()]
    people = [files[: max(1, round(part * len(files)))] for files in folders]
    clean = sorted(Path(cfg.data.images).iterdir())
    loop = TheirImage(model.vision_model, model.visual_projection, t.overlay)
    photos, total = [file for files in people for file in files], 0
    side = model.config.vision_config.image_size
    for start in range(0, len(photos), _BATCH):
        batch = loop.tensor([read_photo(file, side) for file in photos[start : start + _BATCH]])
        with loop.torch.no_grad():
            total = total + loop.embed(loop.teacher, batch).sum(0)
    target = total / len(photos)

    def step() -> None:
        images, faces = loop.load(clean, people, t.num_clean, t.num_poisoned)
        loop.step(images, faces, target, t.w_backdoor, t.w_weight)

    return loop, step


def laps() -> Callable[[], float]:
    """Give a clock that tells the seconds since it was asked last."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        begin, last = last, time.perf_counter()
        return last - begin

    return lap
