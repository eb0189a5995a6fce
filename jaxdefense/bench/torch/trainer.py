"""The training step that both defenses share, in PyTorch."""

import copy
from collections.abc import Sequence
from typing import Any

from jaxdefense.bench.torch.base import TorchImplementation


class TorchTrainer(TorchImplementation):
    """A frozen teacher, a student with frozen norms, and an eager AdamW.

    Student and teacher run once for the clean samples and once for the poisoned ones.
    """

    fused = False  # whether AdamW updates all parameters in one kernel

    def __init__(self, tower: Any, projection: Any):
        """Copy the model for the student and move both to the device.

        Args:
            tower: encoder module of transformers; its output has `pooler_output`.
            projection: module that maps this output to the embedding.
        """
        super().__init__()
        modules = self.torch.nn.ModuleDict({"tower": tower, "projection": projection})
        self.teacher: Any = modules.eval().requires_grad_(False).to(self.device)
        self.student: Any = copy.deepcopy(self.teacher).train()
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_("norm" not in name and "layrnorm" not in name)
        self.reset_optimizer()

    def reset_optimizer(self, lr: float = 1e-4, milestones: Sequence[int] = (), gamma: float = 1.0):
        """Create a new AdamW; its learning rate is multiplied by `gamma` at each milestone."""
        torch: Any = self.torch
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=self.fused)
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(
            self._optimizer, list(milestones), gamma
        )

    def embed(self, modules: Any, x: Any) -> Any:
        """Run an encoder; in bfloat16 on a GPU, as jaxdefense does."""
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.cuda):
            return modules["projection"](modules["tower"](x).pooler_output).float()

    def distance(self, x: Any, y: Any) -> Any:
        """Return the mean negative cosine similarity."""
        return -self.torch.nn.functional.cosine_similarity(x, y).mean()

    def total(self, utility: Any, backdoor: Any, w_backdoor: float, w_weight: float) -> Any:
        """Return the total loss."""
        pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        weight = sum(self.torch.norm(s - t) for s, t in pairs)
        return utility + w_backdoor * backdoor + w_weight * weight

    def update(self, loss: Any) -> None:
        """Take one optimizer step."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
