"""Excel workbooks, through openpyxl: the cells of every sheet as tables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import datetime, time
from itertools import zip_longest
from typing import Any

from kvtool import limits
from kvtool.documents.office.package import Package, table
from kvtool.errors import DocumentError

SHEETS = re.compile(r"xl/(?:worksheets/|sharedStrings)", re.IGNORECASE)

FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")


def xlsx_text(data: bytes, name: str, warnings: list[DocumentError]) -> str:
    """Values as stored, hidden sheets too, and formulas where no value is stored; then comments, shapes and charts."""
    package = Package(data, name)
    values = _open(data, data_only=True)
    # Formulas need a second pass, which most files can do without.
    sheets = [part for part in package.names if SHEETS.match(part)]
    has_formulas = any(FORMULA.search(package.zip.read(part)) for part in sheets)
    formulas = _open(data, data_only=False).worksheets if has_formulas else []
    blocks = []
    uncalculated = 0
    for sheet, other in zip_longest(values.worksheets, formulas):
        rows = []
        for cells, sources in zip_longest(_rows(sheet), _rows(other) if other else (), fillvalue=()):
            row = []
            for cell, source in zip_longest(cells, sources):
                if cell.value is None and source and source.value is not None:
                    uncalculated += 1
                    row.append(_shown(source.value, ""))
                else:
                    row.append(_shown(cell.value, cell.number_format if cell.value is not None else ""))
            while row and not row[-1]:
                row.pop()
            if row:
                rows.append(row)
        if rows:
            blocks.append("\n".join([f"## {sheet.title}", "", *table(rows)]))
    if uncalculated:
        reason = f"stores no result for {uncalculated:,} of its formulas, which were read instead"
        warnings.append(DocumentError(name, reason, "open it in a spreadsheet and save it again"))
    text = "\n\n".join(blocks)
    rest = package.left_out(text, [part for part in package.names if not SHEETS.match(part)])
    return "\n\n".join([text, "---", *rest] if text and rest else [text, *rest])


def _open(data: bytes, *, data_only: bool) -> Any:
    import openpyxl

    return openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=data_only, keep_links=False)


def _rows(sheet: Any) -> Iterator[Any]:
    # A sheet may say that it is smaller than it is, and then the rest would be missing.
    sheet.reset_dimensions()
    for number, row in enumerate(sheet.rows, 1):
        if number > limits.SHEET_ROWS:
            raise ValueError(f"sheet {sheet.title} has more than {limits.SHEET_ROWS:,} rows")
        yield row


def _shown(value: Any, number_format: str) -> str:
    """A value as text: dates in ISO form, percentages as such, and numbers with the 15 digits that Excel keeps."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).upper()
        case float() | int() if "%" in number_format:
            return f"{value * 100:.15g}%"
        case float():
            return f"{value:.15g}"
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case datetime():
            return value.isoformat(" ")
    return str(getattr(value, "text", value))
