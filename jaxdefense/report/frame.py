"""The frame of every page, and the templates of its sections.

A page is one self-contained HTML file. It uses no network and no scripts, and its content security
policy forbids both. Templates escape every value that is not `Markup`.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2
from jinja2.ext import Extension
from markupsafe import Markup

from jaxdefense import __version__
from jaxdefense.figures import count, decimal, duration, percent
from jaxdefense.report.labels import LEAST_PEOPLE

_TEMPLATES = Path(__file__).parent / "templates"

# Colours of the light page, by CSS variable.
LIGHT = {
    "--page": "#ffffff", "--panel": "#f5f6f8", "--ink": "#1a2130", "--muted": "#566072",
    "--line": "#dce0e7", "--link": "#1d5fbf", "--bad": "#a1260d",
    "--series-1": "#c4520a", "--series-2": "#2a66c0", "--series-3": "#66758a",
}  # fmt: skip


class _OneLine(Extension):
    """Joins the lines of a template, with nothing next to a tag and with a space elsewhere."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """See `jinja2.ext.Extension`."""
        source = re.sub(r"(?:(?<=>)|(?<=[%#]}))\s*\n\s*|\s*\n\s*(?=[<{]|$)", "", source)
        return re.sub(r"\s*\n\s*", " ", source)


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        extensions=[_OneLine],
    )
    env.filters |= {"count": count, "decimal": decimal, "duration": duration, "percent": percent}
    env.globals |= {"least": LEAST_PEOPLE}
    return env


_ENVIRONMENT = _environment()


def render(template: str, **given: object) -> Markup:
    """Fill the template `templates/NAME.html`; values that are not `Markup` are escaped."""
    return Markup(_ENVIRONMENT.get_template(f"{template}.html").render(given))


def page(title: str, lede: str, sections: Iterable[Markup]) -> str:
    """Write a page.

    Args:
        title, lede: text, not markup.
        sections: sections in order; empty ones add nothing.
    """
    colours = "\n".join(f"  {name}: {colour};" for name, colour in LIGHT.items())
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    style = Markup(f"\n:root {{\n{colours}\n}}\n{css}")  # none of it comes from data
    given = {"title": title, "lede": lede, "sections": sections, "style": style}
    return render("page", **given, version=__version__) + "\n"


def section(heading: str, *parts: Markup) -> Markup:
    """Write a section under a heading; nothing if all its parts are empty."""
    return render("section", heading=heading, parts=parts) if any(parts) else Markup()


def settings(values: Mapping[str, object]) -> Markup:
    """Write settings as a section that the reader can open."""
    return render("settings", values=values) if values else Markup()


def tiles(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Write large figures, each with its value, unit and label."""
    every = list(items)
    return render("tiles", items=every) if every else Markup()


def jpeg(data: bytes) -> str:
    """Return a data URL that holds a JPEG photo."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def flatten(tree: Mapping[str, object], at: str = "") -> dict[str, object]:
    """Flatten nested settings; a key becomes `section.name`."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{at}{key}.")
        else:
            flat[at + key] = value
    return flat
