"""The frame of a page, its style sheet, and the blocks that pages are made of. All text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from . import charts

_STYLE = """
*{box-sizing:border-box}
html{color-scheme:light dark;background:var(--ground);--ground:#f4f5f7;--mark:#fff3d6;--mark-ink:#6b4a00}
@media(prefers-color-scheme:dark){html{--ground:#11151a;--mark:#3a2f14;--mark-ink:#f4d58a}}
body{margin:0 auto;max-width:1240px;padding:40px 28px 64px;color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
header{margin-bottom:26px}
h1{font-size:27px;line-height:1.2;letter-spacing:-.015em;margin:0 0 5px;overflow-wrap:anywhere}
h2{font-size:18px;letter-spacing:-.01em;margin:44px 0 4px}
p{margin:0 0 12px;max-width:100ch}
ul{margin:0;padding-left:20px}
.soft,h2+p{color:var(--soft)}
code,.code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:16px;margin-top:14px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 14px 8px;
min-width:0;display:grid;grid-template-columns:minmax(0,1fr);align-content:center}
.wide{grid-column:1/-1;overflow-x:auto}
.wide svg{min-width:680px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:16px;margin:22px 0 0}
.figures div{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:13px 16px}
.figures dt{color:var(--soft);font-size:12.5px}
.figures dd{margin:1px 0 0;font-size:22px;font-weight:600;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.figures small{display:block;font-size:12.5px;font-weight:400;letter-spacing:0;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px}
caption{text-align:left;font-size:13px;font-weight:600;padding:0 0 8px}
th,td{padding:5px 14px 5px 0;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--soft);font-weight:500;white-space:nowrap}
th[scope=row]{font-weight:400;white-space:nowrap}
.number{text-align:right;white-space:nowrap}
tr.strong>*{font-weight:600}
tr.changed>*{background:var(--mark);color:var(--mark-ink)}
tr.changed>:first-child{box-shadow:-14px 0 0 var(--mark)}
tr.head>*{padding-top:16px;color:var(--soft);font-size:12px;letter-spacing:.06em;text-transform:uppercase;border-top:0}
figure{margin:0}
figcaption{color:var(--soft);font-size:13px;padding:6px 0 4px}
figure img{display:block;width:100%;height:auto;border-radius:6px;background:#fff;padding:6px}
summary{cursor:pointer;font-weight:600;font-size:13px;padding:2px 0 8px}
blockquote{margin:0 0 6px;padding:2px 0 2px 14px;border-left:3px solid var(--c0);font-size:16px;max-width:80ch}
footer{margin-top:48px;color:var(--soft);font-size:12.5px}
@media print{body{max-width:none;padding:0}.card{break-inside:avoid}}
"""


def page(title: str, subtitle: str, blocks: Iterable[str], *, footer: str) -> str:
    """A whole document.

    Args:
        title: the heading, as text.
        subtitle: the line below it, as text.
        blocks: the content, as HTML.
        footer: the last line, as text.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{charts.STYLE}{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>\n<main>\n'
        + "\n".join(blocks)
        + f"\n</main>\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def section(title: str, text: str, *blocks: str) -> str:
    """A heading, a line of explanation, and what follows; "" when nothing follows."""
    inside = "".join(blocks)
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{inside}</section>" if inside else ""


def grid(*cards: str) -> str:
    """Cards side by side where there is room; "" without any."""
    inside = "".join(cards)
    return f'<div class="grid">{inside}</div>' if inside else ""


def card(content: str, *, wide: bool = False) -> str:
    """A box around a chart, a table or a picture; "" around nothing."""
    return f'<div class="card{" wide" if wide else ""}">{content}</div>' if content else ""


def figures(entries: Iterable[tuple[str, str, str]]) -> str:
    """The few numbers that matter: (what, value, detail)."""
    inside = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for what, value, detail in entries
    )
    return f'<dl class="figures">{inside}</dl>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    *,
    numbers: bool = True,
    marks: Sequence[str] = (),
) -> str:
    """A table whose first column names the row.

    Args:
        columns: the headings.
        rows: the cells of each row.
        caption: the line above the table; "" for none.
        numbers: whether the columns after the first hold numbers.
        marks: a class for each row: "", "strong", "changed", or "head" for a row that is a heading, of which only the
            first cell is shown.
    """
    kind = ' class="number"' if numbers else ""
    head = "".join(f'<th scope="col"{kind if i else ""}>{escape(c)}</th>' for i, c in enumerate(columns))
    lines = []
    for i, row in enumerate(rows):
        mark = marks[i] if i < len(marks) else ""
        if mark == "head":
            lines.append(f'<tr class="head"><th scope="rowgroup" colspan="{len(columns)}">{escape(row[0])}</th></tr>')
            continue
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr{f" class={mark}" if mark else ""}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def details(summary: str, content: str) -> str:
    """Content that is folded up until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def picture(path: Path, alt: str, caption: str) -> str:
    """A PNG file inside the page; "" where there is none."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def listing(texts: Sequence[str]) -> str:
    """Sentences, one below the other; "" for none."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def quotation(text: str) -> str:
    """A sentence that stands out."""
    return f"<blockquote>{escape(text)}</blockquote>"
