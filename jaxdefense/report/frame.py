"""The frame of every page, and the templates that its sections are written with.

A page is one self-contained HTML file: no network, no scripts, and a content policy that forbids
what should not be there anyway. Templates escape what they are given, unless it is `Markup`.
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

# Colours of the light page, by the variable of its style sheet.
LIGHT = {
    "--page": "#ffffff", "--panel": "#f5f6f8", "--ink": "#1a2130", "--muted": "#566072",
    "--line": "#dce0e7", "--link": "#1d5fbf", "--bad": "#a1260d",
    "--series-1": "#c4520a", "--series-2": "#2a66c0", "--series-3": "#66758a",
}  # fmt: skip


class _OneLine(Extension):
    """Joins the lines of a template: with nothing beside a tag, else with a space."""

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
    """Fill a template, `templates/NAME.html`; what is given is escaped unless it is `Markup`."""
    return Markup(_ENVIRONMENT.get_template(f"{template}.html").render(given))


def page(title: str, lede: str, sections: Iterable[Markup]) -> str:
    """Write a page.

    Args:
        title, lede: text.
        sections: in order; empty ones leave no trace.
    """
    colours = "\n".join(f"  {name}: {colour};" for name, colour in LIGHT.items())
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    style = Markup(f"\n:root {{\n{colours}\n}}\n{css}")  # ours, all of it
    given = {"title": title, "lede": lede, "sections": sections, "style": style}
    return render("page", **given, version=__version__) + "\n"


def section(heading: str, *parts: Markup) -> Markup:
    """Write a section under a heading; nothing if all its parts are empty."""
    return render("section", heading=heading, parts=parts) if any(parts) else Markup()


def settings(values: Mapping[str, object]) -> Markup:
    """Write settings as a section to open."""
    return render("settings", values=values) if values else Markup()


def tiles(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Write figures large: value, unit and label of each."""
    every = list(items)
    return render("tiles", items=every) if every else Markup()


def jpeg(data: bytes) -> str:
    """Give a photo's address, which holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def flatten(tree: Mapping[str, object], at: str = "") -> dict[str, object]:
    """Write nested settings as one level, `section.name`."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{at}{key}.")
        else:
            flat[at + key] = value
    return flat
