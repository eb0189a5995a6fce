"""What processes of tests/test_demo.py draw; they import this alone."""

from pathlib import Path

import numpy as np

from jaxdefense.demo import world


def objects(path):
    return world.objects(3, Path(path))[:60]


def fail() -> np.ndarray:
    raise OSError("no ink")


def a_photo_that_fails(path):
    return [*objects(path)[:55], world.Drawing(Path(path), fail)]
