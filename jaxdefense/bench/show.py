"""The figures of a benchmark on standard output, as tables or as one JSON object alone."""

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(figures: Mapping[str, Any], as_json: bool, console: Console | None = None) -> None:
    """Print figures.

    Args:
        figures: figures by name, of JSON's types. A mapping becomes a table with a row for each
            figure. Figures of several implementations have a column for each.
        as_json: whether to print one JSON object instead of tables.
        console: console to print on; standard output if None.
    """
    console = console or Console()
    if as_json:
        console.file.write(json.dumps(figures, indent=2) + "\n")
        return
    single = {name: x for name, x in figures.items() if not isinstance(x, Mapping)}
    if single:
        console.print(_table("", single))
    for title, part in figures.items():
        if isinstance(part, Mapping):
            console.print(_table(title, part))


def _table(title: str, part: Mapping[str, Any]) -> Table:
    columns = list(dict.fromkeys(k for x in part.values() if isinstance(x, Mapping) for k in x))
    alone = not all(isinstance(x, Mapping) for x in part.values())
    table = Table(title=_words(title) or None, title_justify="left", box=box.SIMPLE)
    for name in ["", *[""] * alone, *columns]:
        table.add_column(_words(name), justify="right" if name else "left", overflow="fold")
    for name, x in part.items():
        row = [_text(x.get(c, "")) for c in columns] if isinstance(x, Mapping) else []
        first = [""] if isinstance(x, Mapping) else [_text(x)]
        table.add_row(_words(name), *first * alone, *row)
    return table


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _text(x: Any) -> str:
    if isinstance(x, list | tuple):
        return " to ".join(map(_text, x)) if len(x) == 2 else ", ".join(map(_text, x))
    if isinstance(x, Mapping):
        return ", ".join(f"{name} {_text(value)}" for name, value in x.items())
    if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) >= 1000:
        return f"{x:,.0f}" if abs(x) < 1e9 else f"{x:.4g}"
    return f"{x:.4g}" if isinstance(x, float) else str(x)
