"""Values of one column, read row by row: of tables, JSON, Parquet and tar shards.

Each is read in one pass that keeps a row in memory, but for JSON documents, which are kept whole.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdefense.data.forms import JSON, JSON_LINES, PARQUET, TAB, TABLE, TAR, Form
from jaxdefense.data.sources import photo_suffixes, samples
from jaxdefense.errors import InputError
from jaxdefense.files import Opened, decoded, say_once
from jaxdefense.words import some

# Takes the names of the columns, and gives that which is meant.
Choose = Callable[[Sequence[str]], str]
Tell = Callable[[str], object]  # takes what is read of a form without columns
Column = Iterator[tuple[int | str, Any]]  # what each row is called, and its value

# What a row of each form is called.
ROW = {TABLE: "line", JSON_LINES: "line", JSON: "item", PARQUET: "row", TAR: "member"}
_NO_HEADER = "1"  # columns of a table without header are called by numbers from this on
_ROWS = 4096  # of Parquet, decoded at a time


def read_column(
    file: Opened, form: Form, where: str, choose: Choose, named: str, tell: Tell
) -> Column:
    """Give the values of a column, of any JSON type.

    Args:
        file: opened.
        form: not plain text.
        where: what to call it in an error.
        choose: chooses the column.
        named: the column that the source names; "" for none.
        tell: takes what is read, where no column is chosen.

    Raises:
        InputError: the file is damaged, or not in this form; names the row. Or a column is named,
            and it has none.
    """
    if form.name == TABLE:
        return _of_table(file, form.delimiter, where, choose, named)
    if form.name == PARQUET:
        return _of_parquet(file, where, choose)
    if form.name == TAR:
        return _of_tar(file, where, (named or "txt").lower(), tell)
    rows = _Rows(where, ROW[form.name], choose, named, tell)
    return rows.of(_json_lines(file, where)) if form.name == JSON_LINES else _of_json(file, rows)


# Tables


def table_rows(
    file: Opened, delimiter: str, where: str, comment: str = ""
) -> Iterator[tuple[int, list[str]]]:
    """Give the rows of a table, stripped, each with the number of its last line.

    With tabs, a field may stand in quotation marks, but ends at the next tab or line all the same,
    as the text that a quotation mark begins may be a caption.

    Args:
        file: opened.
        delimiter: between fields.
        where: what to call the file in an error.
        comment: what rows that are left out begin with; "" for none.

    Raises:
        InputError: it is not UTF-8, a quotation mark is not closed, or two rows differ in length.
    """
    lines = (line for _, line in decoded(file, where))
    quoting = csv.QUOTE_NONE if delimiter == TAB else csv.QUOTE_MINIMAL
    rows = csv.reader(
        lines, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=True
    )
    length = 0
    try:
        for row in rows:
            if not any(row) or comment and row[0].lstrip().startswith(comment):
                continue
            length = length or len(row)
            if len(row) != length:
                raise InputError(
                    f"{where}, line {rows.line_num} has {len(row)} fields, the first row {length}; "
                    "a field that holds what separates fields must stand in quotation marks."
                )
            yield rows.line_num, [_unquoted(x) if delimiter == TAB else x.strip() for x in row]
    except csv.Error as error:
        raise InputError(
            f"{where}, line {rows.line_num} is no row of a table ({error}); a quotation mark "
            "within a field must be doubled, and the field stand in quotation marks."
        ) from error


def _unquoted(field: str) -> str:
    """Remove the quotation marks around a field, and double ones in it."""
    field = field.strip()
    inner = field[1:-1].replace('""', "")
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner:
        return field[1:-1].replace('""', '"').strip()
    return field


def _of_table(file: Opened, delimiter: str, where: str, choose: Choose, named: str) -> Column:
    rows = table_rows(file, delimiter, where)
    number, header = next(rows, (0, []))
    if not header:
        return
    if named.isdecimal() and named not in header:
        index = int(choose([str(i) for i in range(int(_NO_HEADER), len(header) + 1)])) - 1
        yield number, header[index]
    else:
        index = header.index(choose(header))
    for number, row in rows:
        yield number, row[index]


# JSON


def json_type(value: object) -> str:
    """Name the JSON type of a value."""
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def json_objects(
    items: object, key: str, fields: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Check that a value of COCO's form is a list of objects, each of which has these fields.

    Raises:
        InputError: it is not; names the first other item.
    """
    if not isinstance(items, list):
        raise InputError(
            f"{where}: `{key}` is a JSON {json_type(items)}; must be a list of objects."
        )
    for i, item in enumerate(items):
        if not isinstance(item, dict) or any(field not in item for field in fields):
            raise InputError(
                f"{where}: `{key}[{i}]` must be an object with {some(fields)}, as COCO has it."
            )
    return items


def _json_lines(file: Opened, where: str) -> Iterator[tuple[int, object]]:
    for number, line in decoded(file, where):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}, line {number} is not JSON ({error}); each line must be an object, or "
                "a string."
            ) from error


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How the items of a JSON file are read; the fields are as of `read_column`."""

    where: str
    row: str
    choose: Choose
    named: str
    tell: Tell

    def without_column(self, what: str) -> None:
        """Say what is read; raises InputError if the source names a column."""
        if self.named:
            raise InputError(
                f"{self.where} holds {what}, and no column `{self.named}`; name no column."
            )
        self.tell(what)

    def of(self, items: Iterator[tuple[int, object]]) -> Column:
        """Take the column of each object; a string stands for itself."""
        column, strings = "", False
        for number, item in items:
            if isinstance(item, dict):
                column = column or self.choose(list(item))
                yield number, item.get(column)
            elif isinstance(item, str):
                if not strings:
                    self.without_column("strings")
                strings = True
                yield number, item
            else:
                raise InputError(
                    f"{self.where}, {self.row} {number} is a JSON {json_type(item)}; must be an "
                    "object or a string."
                )


def _of_json(file: Opened, rows: _Rows) -> Column:
    where, text = rows.where, "".join(line for _, line in decoded(file, rows.where))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}.") from error
    if isinstance(found, dict):
        return _of_object(found, rows)
    if not isinstance(found, list):
        raise InputError(
            f"{where} holds a JSON {json_type(found)}; must be a list, or COCO's form."
        )
    return rows.of(enumerate(found, 1))


def _of_object(found: dict[str, Any], rows: _Rows) -> Column:
    """Read COCO's annotations, or captions by the name of the photo."""
    if "annotations" in found:
        items = json_objects(found["annotations"], "annotations", ("caption",), rows.where)
        rows.without_column("COCO's annotations")
        return ((i, item["caption"]) for i, item in enumerate(items, 1))
    if not found or not all(name.lower().endswith(photo_suffixes()) for name in found):
        raise InputError(
            f"{rows.where} is a JSON object with {some(found) or 'nothing in it'}; must have "
            "COCO's list `annotations`, or be a list of objects, or map names of photos to "
            "captions."
        )
    rows.without_column("captions by photo")
    return iter(found.items())


# Parquet and tar


def _of_parquet(file: Opened, where: str, choose: Choose) -> Column:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        parquet = pq.ParquetFile(file.data)
        column = choose(parquet.schema_arrow.names)
        for batch in parquet.iter_batches(_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield number, value
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{where} cannot be read after row {number}: {why}; replace it."
        ) from error


def _of_tar(file: Opened, where: str, suffix: str, tell: Tell) -> Column:
    """Read the members of a suffix; in a tar with photos, those that belong to one."""
    shard, others = str(file.packed.name), dict[str, None]()
    photos = any(member.is_photo() for sample in samples(shard, where) for member in sample)
    found = alone = 0
    first = ""
    for sample in samples(shard, where):
        others |= dict.fromkeys(member.suffix for member in sample if member.suffix != suffix)
        captions = [member for member in sample if member.suffix == suffix]
        if photos and not any(member.is_photo() for member in sample):
            alone += len(captions)
            first = first or "".join(member.name for member in captions[:1])
            continue
        for member in captions:
            if not found:
                tell(f".{suffix} files")
            found += 1
            file.packed.seek(member.start)
            yield member.name, file.packed.read(member.size)
    if alone:
        left = f"{where}: {alone} .{suffix} files belong to no photo (first `{first}`)"
        if not found:
            raise InputError(f"{left}, and none does; webdataset puts both side by side.")
        say_once(f"{left}; they are left out")
    elif others and not found:
        raise InputError(
            f"{where} holds no .{suffix} file; it has {some(f'.{x}' for x in others)}. Captions "
            "lie in .txt files, one each, or name another suffix: `FILE::SUFFIX`."
        )
