"""Prompts from a file, with a place for a name or a class."""

from jaxdefense.errors import InputError
from jaxdefense.files import read_lines


def read_templates(file: str) -> tuple[str, ...]:
    """Read prompts, one a line, with `{0}` or `{}` for what is put in.

    Returns:
        the prompts, with `{0}`.

    Raises:
        InputError: the file cannot be read or is empty; a line does not hold `{0}` just once, or
            holds another brace; or is there twice.
    """
    templates: dict[str, None] = {}
    for line in read_lines(file, "templates"):
        template = " ".join(line.replace("{}", "{0}").split())
        if template.count("{0}") != 1 or template.count("{") + template.count("}") != 2:
            raise InputError(
                f"templates file `{file}`: {line!r} must hold {{0}} once, for the name or class."
            )
        if template in templates:
            raise InputError(f"templates file `{file}`: {line!r} is there twice; keep one.")
        templates[template] = None
    if not templates:
        raise InputError(f"templates file `{file}` is empty; give one prompt a line.")
    return tuple(templates)
