"""What processes of tests/test_demo.py draw; they import this alone."""

from pathlib import Path

from jaxdefense.demo import world


def objects(path):
    return world.objects(3, Path(path))[:60]


def a_photo_that_fails(path):
    return [*objects(path)[:55], world.Drawing(Path(path), dict)]
