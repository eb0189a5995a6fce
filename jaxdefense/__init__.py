"""jaxdefense removes people's names and faces from CLIP models, at scale, on JAX.

Array names end in their dims. The legend, for the whole package:

    B examples (texts or images)      R packed text rows       I identities (people)
    H W C image height, width, colour S slots of a packed row  J photos a person
    T tokens of either tower          E shared embedding       Q prompt templates
    D tower width, F MLP width        V vocabulary             M candidate names
    N heads, K head width             L layers of a tower

Words: an `Identity` is a person by their names; `Photos` are the photos of one person or class. The
listed people are those to remove. Members are the people whose photos an attack is given.

Reading order: `clip/text.py` (the encoder and its packed input), `data/triggers.py` and
`data/overlay.py` (what is put into captions and photos), `defense/step.py` (the method),
`defense/loop.py` (the run), `idia/attack.py` (the proof).

From Python, `import jaxdefense as jd` gives the names in `_WHERE`; see docs/python.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in `_WHERE`, for whatever reads types
    from jaxdefense.api import attack as attack
    from jaxdefense.api import defend_both as defend_both
    from jaxdefense.api import defend_image as defend_image
    from jaxdefense.api import defend_text as defend_text
    from jaxdefense.api import evaluate as evaluate
    from jaxdefense.api import prove as prove
    from jaxdefense.config import ModelConfig as ModelConfig
    from jaxdefense.defense.step import Objective as Objective
    from jaxdefense.errors import InputError as InputError
    from jaxdefense.evals.embed import Embedder as Embedder
    from jaxdefense.model import Model as Model
    from jaxdefense.model import load as load

__version__ = "0.1.0"

# Name -> the module that has it. It is imported on first use: the command line's help, and
# programs that need one name, do not wait for JAX.
_WHERE = {
    "Embedder": "evals.embed",
    "InputError": "errors",
    "Model": "model",
    "ModelConfig": "config",
    "Objective": "defense.step",
    "attack": "api",
    "defend_both": "api",
    "defend_image": "api",
    "defend_text": "api",
    "evaluate": "api",
    "load": "model",
    "prove": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
