"""The frame of every page: one self-contained HTML file, and what is written into it alike.

No network, no scripts; text from data must be escaped, and a content policy in the page forbids
what should not be there anyway.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jaxdefense import __version__


def page(title: str, lede: str, sections: Sequence[str]) -> str:
    """Write a page.

    Args:
        title, lede: text.
        sections: HTML; empty ones leave no trace.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p class="lede">{escape(lede)}</p></header>
{"".join(sections)}
<footer>jaxdefense {__version__}</footer>
</main>
</body>
</html>
"""


def section(heading: str, body: str) -> str:
    """Write a section of HTML under a heading; nothing if it is empty."""
    return f"<section><h2>{heading}</h2>{body}</section>" if body else ""


def settings(values: Mapping[str, object]) -> str:
    """Write settings as a section to open."""
    if not values:
        return ""
    return f"<section><details><summary>Settings</summary>{pairs(values)}</details></section>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Write figures large: value, unit and label of each, HTML."""
    text = "".join(
        f"<li><b>{value}</b> <span>{unit}</span><small>{label}</small></li>"
        for value, unit, label in items
    )
    return f'<ul class="tiles">{text}</ul>' if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Write a table; cells are HTML, headings are text."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(values: Mapping[str, object]) -> str:
    """Write names and values, text."""
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items()
    )
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def items(lines: Iterable[str]) -> str:
    """Write a list of HTML lines; nothing if there are none."""
    text = "".join(f"<li>{line}</li>" for line in lines)
    return f"<ul>{text}</ul>" if text else ""


def name(text: str) -> str:
    """Write a person's name, in whatever direction it reads."""
    return f"<bdi>{escape(text)}</bdi>"


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


# Colours of the light page, by the variable of its style sheet.
LIGHT = {
    "--page": "#ffffff", "--panel": "#f5f6f8", "--ink": "#1a2130", "--muted": "#566072",
    "--line": "#dce0e7", "--link": "#1d5fbf", "--bad": "#a1260d",
    "--series-1": "#c4520a", "--series-2": "#2a66c0", "--series-3": "#66758a",
}  # fmt: skip
_LIGHT_CSS = "\n".join(f"  {name}: {colour};" for name, colour in LIGHT.items())
_CSS = f"""
:root {{
{_LIGHT_CSS}
}}"""
_CSS += """
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --panel: #1b212b; --ink: #e8ebf1; --muted: #a3aebf; --line: #323b49;
    --link: #85b7ff; --bad: #ff9d85;
    --series-1: #f59a4f; --series-2: #6fa8f7; --series-3: #94a3b8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h3 span, .note, figcaption small, .tiles small, .tiles span, footer {
  color: var(--muted); font-weight: normal;
}
p, li { max-width: 46rem; }
.lede { font-size: 1.15rem; margin: 0; max-width: 52rem; }
.note, footer { font-size: .875rem; }
a { color: var(--link); }
section { margin-top: 2.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
figure { margin: 0; }
img { display: block; max-width: 100%; }
ul.tiles, ul.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem; }
ul.tiles {
  margin-top: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr));
}
.tiles li { background: var(--panel); border-radius: .5rem; padding: .75rem .9rem; }
.tiles b { font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tiles small { display: block; line-height: 1.35; }
.columns {
  display: grid; gap: 1.5rem 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
}
.pairs + details, .pairs + .curves, .curves + .note { margin-top: 1.25rem; }
.curves {
  display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
}
.curves figure { display: flex; flex-direction: column; justify-content: space-between; }
figcaption { margin-bottom: .4rem; }
figcaption span { float: right; font-variant-numeric: tabular-nums; }
figcaption small { display: block; line-height: 1.35; clear: both; }
.plot { display: block; width: 100%; height: auto; max-width: 34rem; overflow: visible; }
.curves .plot { max-width: 24rem; }
.plot text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.35; }
th, td {
  text-align: right; padding: .45rem 0 .45rem .75rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; overflow-wrap: normal;
}
th { font-weight: 600; }
thead th { color: var(--muted); vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
.people tbody th { font-weight: 500; }
.people th:first-child { min-width: 8rem; overflow-wrap: anywhere; }
.people td:nth-child(2), .people th:nth-child(2) {
  text-align: left; padding-left: 1.25rem;
}
.people td:nth-child(2) { min-width: 8rem; }
td small, th small { display: block; color: var(--muted); font-weight: normal; }
td small { white-space: nowrap; }
.wide th:first-child { min-width: 9rem; }
ul.cards { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.cards li {
  background: var(--panel); border-radius: .5rem; padding: .6rem; font-size: .9rem;
  line-height: 1.35;
}
.cards img {
  width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .3rem; margin-bottom: .5rem;
}
.cards dl { margin: .35rem 0 0; }
.cards dt { color: var(--muted); font-size: .8rem; margin-top: .3rem; }
.cards dd { margin: 0; display: flex; gap: .4rem; align-items: baseline; }
.cards dt span { float: right; font-variant-numeric: tabular-nums; }
.mark {
  flex: none; display: inline-block; width: 1.25em; line-height: 1.15em; text-align: center;
  font-weight: 700; border: 1px solid var(--ink); border-radius: .25em;
}
.mark.own { background: var(--ink); color: var(--page); }
.mark.none { border-style: dashed; color: var(--muted); border-color: var(--muted); }
.bad { color: var(--bad); font-weight: 600; }
.cards .bad { display: block; }
summary { cursor: pointer; font-weight: 600; }
details > :nth-child(2) { margin-top: .75rem; }
dl.pairs {
  display: grid; gap: .3rem 1.5rem; margin: 0; font-size: .9rem;
  grid-template-columns: minmax(0, max-content) minmax(50%, 1fr);
}
.pairs dt { color: var(--muted); }
.pairs dd { margin: 0; }
footer { margin-top: 2.5rem; }
"""
