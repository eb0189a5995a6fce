"""What all tests share: simulated devices, no network, and where data and tiny models come from."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the time goes into compiling programs that then run for milliseconds. With these flags
# XLA compiles a step six times as fast. `XLA_FLAGS= pytest` compiles as a user's run does.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# The same steps come up in many tests. One directory a worker: a file half written by another
# would be a warning, and so an error.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxdefense-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Where fixtures of many tests keep things.
os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"] + "/.cache"

import hypothesis
import jax
import pytest
from factories import write_model_directory
from reference import mend_torchvision

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
mend_torchvision()

PLATFORM = os.environ.get("JAXDEFENSE_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM)
if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
else:
    # Tolerances are of float32; accelerators multiply in fewer bits unless told.
    jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """Skip the tests marked `torch` or `needs` where a library that the mark names is not."""
    for item in items:
        named = {name for mark in item.iter_markers("torch") for name in ("torch", *mark.args)}
        named |= {name for mark in item.iter_markers("needs") for name in mark.args}
        if missing := sorted(name for name in named if not importlib.util.find_spec(name)):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    """No test reads what another, or the user, computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture
def one_thread(monkeypatch):
    """Torch's threads wait for each other by spinning, for minutes where others compute too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """Real captions, photos and vocabulary; tests that need them skip where there are none."""
    default = Path(__file__).parents[2] / "shared/data"
    path = Path(os.environ.get("JAXDEFENSE_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set JAXDEFENSE_TEST_DATA")
    return path


@pytest.fixture
def tiny_dir(tmp_path):
    """Function that writes a tiny model directory; takes what `write_model_directory` takes."""

    def make(name="model", **options):
        return write_model_directory(tmp_path / name, **options)

    return make
