"""An explanation as one HTML page: pictures inside, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING

from ._pictures import media_type

if TYPE_CHECKING:
    from .explanation import Explanation

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SQUARE = 9  # up to so many pictures stand in three columns, more of them closer together

_STYLE = """:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1b1d21; --soft: #5c626c; --faint: #e3e3de; --mark: #c63f27;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --card: #1c1f24; --ink: #e9e9e5; --soft: #a0a6b0; --faint: #2c3037; --mark: #ff8163; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1088px; margin: 0 auto; padding: 56px 24px 64px; }
h1, h2, p, ol, figure { margin: 0; padding: 0; }
ol { list-style: none; }
.kind { color: var(--soft); font-size: 14px; letter-spacing: .02em; }
.kind b { color: var(--mark); font-weight: 650; }
h1 { font-size: clamp(34px, 1.4rem + 3.4vw, 64px); line-height: 1.1; font-weight: 650; letter-spacing: -.025em;
  margin: 8px 0 12px; overflow-wrap: anywhere; text-wrap: balance; }
.lead { color: var(--soft); font-size: 18px; max-width: 40em; }
h2 { font-size: 19px; line-height: 1.3; font-weight: 650; }
h2 + p { color: var(--soft); font-size: 15px; margin-top: 4px; }

.columns { display: grid; grid-template-columns: minmax(0, 600px) minmax(260px, 1fr); margin-top: 40px;
  gap: 32px clamp(32px, 6.6vw, 72px); align-items: start; }
.columns > section { position: sticky; top: 32px; }
.pictures { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 22px 16px; }
.pictures.many { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 18px 12px; }
.many figcaption { flex-direction: column; gap: 0; }
.picture { display: grid; place-items: center; aspect-ratio: 1; width: 100%; border-radius: 8px; object-fit: cover;
  background: var(--faint); color: var(--soft); font-size: 13px; text-align: center; overflow: hidden;
  overflow-wrap: anywhere;
  outline: 1px solid color-mix(in srgb, var(--ink) 8%, transparent); outline-offset: -1px; }
figcaption { display: flex; gap: 8px; justify-content: space-between; margin-top: 6px;
  font-size: 13px; line-height: 1.4; }
.id { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--soft); }
.number { font-variant-numeric: tabular-nums; }

.path { margin-top: 14px; }
.path li { display: grid; grid-template-columns: 56px minmax(0, 1fr) auto; gap: 2px 16px; align-items: center;
  padding: 12px 0; border-top: 1px solid var(--faint); }
.path .picture { grid-row: span 2; border-radius: 6px; font-size: 9px; }
.word { font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; align-self: end; }
.path .number { font-size: 14px; align-self: end; }
.bar { grid-column: 2 / 4; align-self: start; height: 4px; border-radius: 2px; background: var(--faint);
  margin-top: 4px; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--mark); }

footer { margin-top: 64px; padding-top: 20px; border-top: 1px solid var(--faint); color: var(--soft); font-size: 14px; }
footer p { max-width: 46em; }
footer p + p { margin-top: 8px; }
@media (max-width: 860px) {
  main { padding: 32px 20px 48px; }
  .columns { grid-template-columns: minmax(0, 1fr); margin-top: 28px; gap: 44px; }
  .columns > section { position: static; }
  .pictures { gap: 16px 10px; }
  .pictures figcaption { flex-direction: column; gap: 0; }
}
"""


def page(explanation: Explanation) -> str:
    """The page as text."""
    from . import __version__

    count = len(explanation.images)
    figures = "\n".join(_figure(explanation, *image) for image in explanation.images)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(explanation.title)} in pictures</title>
<link rel="icon" href="data:,">
<style>
{_STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kind"><b>imgskipgram</b> explanation</p>
<h1>{escape(explanation.title)}</h1>
<p class="lead">{_lead(explanation)}</p>
</header>
<div class="columns">
<ol class="{"pictures" if count <= _SQUARE else "pictures many"}">
{figures}
</ol>
{_path(explanation)}</div>
<footer>
<p>{_reading(explanation)}</p>
<p>Written by imgskipgram {escape(__version__)}. This file is complete: it loads nothing from elsewhere.</p>
</footer>
</main>
</body>
</html>
"""


def framed(explanation: Explanation) -> str:
    """The page inside a frame, as notebooks show it: its style stays inside, theirs outside."""
    frame = "width:100%;height:720px;border:0;border-radius:8px"
    return f'<iframe srcdoc="{escape(page(explanation))}" sandbox style="{frame}"></iframe>'


def _lead(explanation: Explanation) -> str:
    count, candidates = len(explanation.images), explanation.candidates
    if count == 1:
        return f"The nearest of {candidates:,} pictures. Its labels were not looked at."
    if explanation.diversity:
        which = f"{count:,} of {candidates:,} pictures, chosen to be near and to differ from each other"
    elif count == candidates:
        which = f"All {count:,} pictures, best first"
    else:
        which = f"The {count:,} nearest of {candidates:,} pictures, best first"
    return f"{which}. Their labels were not looked at."


def _figure(explanation: Explanation, index: int, name: str, score: float) -> str:
    return (
        f"<li><figure>{_picture(explanation, index)}<figcaption>"
        f'<span class="id" title="{escape(name)}">{escape(name)}</span>{_number(score)}</figcaption></figure></li>'
    )


def _path(explanation: Explanation) -> str:
    if not explanation.path:
        return ""
    steps = "\n".join(
        f'<li>{_picture(explanation, index)}<span class="word">{escape(word)}</span>{_number(cosine)}'
        f'<span class="bar"><i style="width:{100 * min(max(cosine, 0), 1):.1f}%"></i></span></li>'
        for word, cosine, index in explanation.path
    )
    return f"""<section>
<h2>Nearest words that have pictures</h2>
<p>By the cosine of their vectors; of each word its most fitting picture.</p>
<ol class="path">
{steps}
</ol>
</section>
"""


def _reading(explanation: Explanation) -> str:
    if explanation.csls:
        return (
            "A picture&rsquo;s number is twice its cosine with the centred vector, less its mean cosine with the ten"
            " words that are nearest to it: pictures that are near to everything are set back."
        )
    return "A picture&rsquo;s number is its cosine with the centred vector."


def _picture(explanation: Explanation, index: int) -> str:
    name = escape(explanation.ids[index])
    data = explanation.thumbnails.get(index)
    if data is None:
        return f'<span class="picture">{name}</span>'
    source = f"data:{media_type(data)};base64,{b64encode(data).decode()}"
    return f'<img class="picture" alt="{name}" src="{source}" loading="lazy" decoding="async">'


def _number(x: float) -> str:
    shown = f"{round(x, 2) + 0.0:.2f}"  # -0.0 + 0.0 is 0.0
    return f'<span class="number">{shown.replace("-", "&minus;")}</span>'
