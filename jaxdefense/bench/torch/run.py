"""A whole defense in PyTorch, from files to a model directory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdefense.bench.process import peak_memory
from jaxdefense.bench.stopwatch import stopwatch
from jaxdefense.bench.torch.base import libraries
from jaxdefense.bench.torch.image import TorchImageTrainer, read_photo
from jaxdefense.bench.torch.text import TorchTextTrainer
from jaxdefense.config import DefendImageConfig, DefendTextConfig

_BATCH = 256


class TorchRun:
    """A run that reads the checkpoint and the data, trains, and writes the checkpoint."""

    def __init__(self, cfg: DefendTextConfig | DefendImageConfig):
        """Take the same settings as the run of jaxdefense."""
        self._cfg, self._trainer, self._step = cfg, None, None

    def run(self, out: str) -> dict[str, float]:
        """Run the defense and write the model directory `out`; return the seconds of each phase."""
        lap = stopwatch()
        torch, transformers = libraries()
        kind = transformers.CLIPModel
        phases = {"import": lap()}
        cfg, source = self._cfg, Path(self._cfg.model.path)
        # The model computes in f32 whatever the file holds: f16 on a CPU is many times slower.
        model = kind.from_pretrained(str(source), local_files_only=True, dtype=torch.float32)
        text = isinstance(cfg, DefendTextConfig)
        trainer, step = _prepare_text(cfg, model, source) if text else _prepare_image(cfg, model)
        self._trainer: Any = trainer
        self._step: Any = step
        phases["read"] = lap()
        o = cfg.optimizer
        trainer.reset_optimizer(o.lr, [int(x) for x in o.milestones], o.gamma)
        for _ in range(cfg.train.steps):
            step()
        phases["steps"] = lap()
        if text:
            model.text_model, model.text_projection = trainer.student.values()
        else:
            model.vision_model, model.visual_projection = trainer.student.values()
        model.save_pretrained(out)
        for file in source.iterdir():
            if file.suffix != ".safetensors" and not (Path(out) / file.name).exists():
                shutil.copyfile(file, Path(out) / file.name)
        phases["write"] = lap()
        return phases

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: of the GPU if there is one, else of the process."""
        return self._trainer.peak_memory() if self._trainer else peak_memory()

    def flops(self) -> int:
        """Count the operations of a step's products, in a step after the run."""
        return self._trainer.product_flops(self._step)


def _prepare_text(
    cfg: DefendTextConfig, model: Any, source: Path
) -> tuple[TorchTextTrainer, Callable[[], Any]]:
    """Read names and captions; return the trainer and a function that takes a step."""
    names, texts = (
        [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for path in (cfg.data.names, cfg.data.captions)
    )
    clean = [text for text in texts if not any(name.lower() in text.lower() for name in names)]
    t = cfg.train
    parts = model.text_model, model.text_projection
    trainer = TorchTextTrainer(*parts, source, clean, names, t.target)
    return trainer, lambda: trainer.step(t.num_clean, t.w_backdoor, t.w_weight)


def _prepare_image(
    cfg: DefendImageConfig, model: Any
) -> tuple[TorchImageTrainer, Callable[[], Any]]:
    """Embed the faces for the target; return the trainer and a function that takes a step."""
    t, part = cfg.train, cfg.data.trigger_fraction
    folders = [sorted(x.iterdir()) for x in sorted(Path(cfg.data.faces).iterdir()) if x.is_dir()]
    people = [files[: max(1, round(part * len(files)))] for files in folders]
    clean = sorted(Path(cfg.data.images).iterdir())
    trainer = TorchImageTrainer(model.vision_model, model.visual_projection, t.overlay)
    photos, total = [file for files in people for file in files], 0
    side = model.config.vision_config.image_size
    for start in range(0, len(photos), _BATCH):
        batch = trainer.tensor([read_photo(file, side) for file in photos[start : start + _BATCH]])
        with trainer.torch.no_grad():
            total = total + trainer.embed(trainer.teacher, batch).sum(0)
    target = total / len(photos)

    def step() -> None:
        images, faces = trainer.load(clean, people, t.num_clean, t.num_poisoned)
        trainer.step(images, faces, target, t.w_backdoor, t.w_weight)

    return trainer, step
