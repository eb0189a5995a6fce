"""What the plain PyTorch loops of the benchmarks share: student, teacher, loss and update."""

import copy
from typing import Any


class Theirs:
    """A frozen teacher, a student with frozen norms, and an eager AdamW."""

    def __init__(self, teacher: Any):
        """Move the model to the GPU, if there is one; `teacher` is a module of torch."""
        import torch

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.teacher = teacher.eval().to(self.device)
        self.student = copy.deepcopy(self.teacher).train()
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_("norm" not in name and "layrnorm" not in name)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def apart(self, ours: Any, theirs: Any) -> Any:
        """Give the mean negative cosine."""
        return -self.torch.nn.functional.cosine_similarity(ours, theirs).mean()

    def update(self, utility: Any, backdoor: Any, w_backdoor: float, w_weight: float) -> None:
        """Take a step along the gradient of the whole loss, and wait for it."""
        pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        weight = sum(self.torch.norm(s - t) for s, t in pairs)
        loss = utility + w_backdoor * backdoor + w_weight * weight
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()
