"""What a start costs: which libraries are imported, by their names, not by the clock."""

import subprocess
import sys

import pytest

from jaxdefense.data.sources import open_tfds
from jaxdefense.errors import InputError

# Each takes a tenth of a second or more, most of them much more.
HEAVY = {
    *("jax", "flax", "optax", "orbax", "grain", "numpy", "scipy", "transformers", "tokenizers"),
    *("safetensors", "tensorflow_datasets", "pyarrow", "ml_collections", "PIL", "matplotlib"),
    *("jinja2", "huggingface_hub", "fsspec", "tensorboardX", "wandb", "mlflow", "torch"),
}


def imported(code, *args):
    """Name the heavy libraries that a fresh Python has imported after running code."""
    code += f"\nimport sys; print(*sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return done.stderr.split()


def test_import_of_the_package_brings_no_heavy_library():
    assert imported("import jaxdefense") == []


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["defend", "text", "--help"]])
def test_help_brings_no_heavy_library(args):
    code = "from jaxdefense.cli import main\nimport sys\n"
    code += "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass"
    assert imported(code, *args) == []


def test_heavy_library_is_found():
    assert imported("import numpy") == ["numpy"]


def test_tfds_source_without_the_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"^`tfds:lfw` needs .* `pip install 'jaxdefense\[tfds\]'"):
        open_tfds("tfds:lfw", "")
