"""What every PyTorch implementation needs: the libraries, a device and the peak memory."""

import sys
from collections.abc import Callable
from typing import Any

from jaxdefense.bench.process import peak_memory
from jaxdefense.clip.config import TextConfig, VisionConfig


def libraries() -> tuple[Any, Any]:
    """Import torch and transformers."""
    # transformers imports torchvision if it is installed. Nothing here needs torchvision, and a
    # version that does not match torch fails to import.
    sys.modules.setdefault("torchvision", None)  # pyright: ignore[reportArgumentType]
    import torch
    import transformers

    return torch, transformers


class TorchImplementation:
    """An implementation that computes in torch, on the GPU if there is one."""

    def __init__(self):
        self.torch: Any = libraries()[0]
        self.cuda = self.torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: of the GPU if there is one, else of the process."""
        return self.torch.cuda.max_memory_allocated() if self.cuda else peak_memory()

    def product_flops(self, work: Callable[[], Any]) -> int:
        """Count the operations of products, as `jaxdefense.bench.flops` does, while `work` runs."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # Of fused attention the counter leaves out a CPU's, and counts the scores of a GPU's twice.
        plain = sdpa_kernel(SDPBackend.MATH)
        eager = self.torch.compiler.set_stance("force_eager")
        with eager, plain, FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()


def transformers_sizes(cfg: TextConfig | VisionConfig) -> dict[str, Any]:
    """Map the sizes of either encoder to the names that transformers gives them."""
    return {
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": cfg.activation,
        "projection_dim": cfg.embed,
    }
