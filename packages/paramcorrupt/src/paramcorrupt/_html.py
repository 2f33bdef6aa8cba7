"""One self-contained page: what was found, figures, a table, and how it was found; it loads nothing."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from ._numbers import MISSING, show
from ._page import SCRIPT, STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._svg import Figure
    from ._tabular import Column, Row, Scalar

_LONGEST_NAME = 40  # of several words; what is longer is a sentence, which is not cut off
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(
    title: str,
    lead: Sequence[str],
    facts: Row,
    figures: Sequence[Figure],
    rows: Sequence[Row],
    *,
    columns: Mapping[str, Column],
    highlights: Sequence[str] = (),
    version: str,
) -> str:
    """The page as text.

    Args:
        title: what kind of result it is.
        lead: sentences that say what was found. The first is the headline.
        facts: what is true of the whole.
        figures: drawn in this order.
        rows: the table; a row may lack columns.
        columns: how columns and facts are shown.
        highlights: names of the facts that stand on top, in large type; the others stand at the end.
        version: of the package.
    """
    headline, *more = lead
    tiles = "".join(_fact(name, facts[name], columns) for name in highlights if facts.get(name) is not None)
    others = "".join(_fact(name, x, columns) for name, x in facts.items() if name not in highlights and x is not None)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}: {escape(headline)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kind"><b>paramcorrupt</b> {escape(title)}</p>
<h1>{escape(headline)}</h1>
{"".join(f'<p class="more">{escape(text)}</p>' for text in more)}
</header>
{f'<dl class="tiles">{tiles}</dl>' if tiles else ""}
{"".join(figure.svg() for figure in figures)}
{_table(rows, columns) if rows else ""}
{f'<section><h2>How this was found</h2><dl class="facts">{others}</dl></section>' if others else ""}
<footer>Written by paramcorrupt {escape(version)}. This file is complete: it loads nothing from elsewhere.</footer>
</main>
<script>
{SCRIPT}</script>
</body>
</html>
"""


def _fact(name: str, x: Scalar, columns: Mapping[str, Column]) -> str:
    text = show(x, columns[name].unit if name in columns else "")
    long = ' class="long"' if len(text) > 24 else ""
    return f"<div{long}><dt{_meaning(name, columns)}>{escape(_label(name, columns))}</dt><dd>{escape(text)}</dd></div>"


def _table(rows: Sequence[Row], columns: Mapping[str, Column]) -> str:
    names = list(dict.fromkeys(key for row in rows for key, x in row.items() if x is not None))
    texts = {name for name in names if any(isinstance(row.get(name), str) for row in rows)}
    head = "".join(_heading(name, columns, name in texts) for name in names)
    body = "\n".join(
        f"<tr>{''.join(_cell(row.get(name), name, columns, name in texts) for name in names)}</tr>" for row in rows
    )
    return (
        f'<section><div class="tools"><h2>All {len(rows):,} rows</h2></div><div class="scroll" tabindex="0">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></section>"
    )


def _heading(name: str, columns: Mapping[str, Column], text: bool) -> str:
    unit = columns[name].unit if name in columns else ""
    small = f"<small>{escape(unit)}</small>" if unit and unit != "%" else ""
    kind = ' class="text"' if text else ""
    return f'<th scope="col"{kind}{_meaning(name, columns)}>{escape(_label(name, columns))}{small}</th>'


def _cell(x: Scalar, name: str, columns: Mapping[str, Column], text: bool) -> str:
    if x is None:
        return f'<td class="none" data-value="">{MISSING}</td>'
    if isinstance(x, str):
        kind = "words" if len(x) > _LONGEST_NAME and " " in x else "name"
        return f'<td class="{kind}" title="{escape(x)}">{escape(x)}</td>'
    shown = show(x, "%" if name in columns and columns[name].unit == "%" else "")
    value = "" if isinstance(x, float) and math.isnan(x) else repr(float(x)).replace("inf", "Infinity")
    return f'<td data-value="{value}">{escape(shown)}</td>'


def _label(name: str, columns: Mapping[str, Column]) -> str:
    return columns[name].label if name in columns else name.replace("_", " ")


def _meaning(name: str, columns: Mapping[str, Column]) -> str:
    meaning = columns[name].meaning if name in columns else ""
    return f' title="{escape(meaning)}"' if meaning else ""
