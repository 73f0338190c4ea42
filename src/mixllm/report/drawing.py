"""matplotlib figures as SVG that goes into a page: its colours are the page's, light or dark.

A figure is drawn in stand-in colours which become CSS variables, so that one drawing serves both
themes. Size is in CSS pixels: WIDTH fits the narrowest phones at full size.
"""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mixllm.errors import MixllmError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 336
# Stand-in colour -> CSS variable of the page.
INK, LINE, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def require() -> None:
    """Raises MixllmError where what draws the report is not installed."""
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise MixllmError(f"report: drawing it needs {missing[0]}; pip install 'mixllm[report]'")


class Drawing:
    """with Drawing("name", height) as d: d.axes...; then d.svg. height: in CSS pixels."""

    def __init__(self, name: str, height: float) -> None:
        require()
        import matplotlib
        from matplotlib.figure import Figure

        self.name = name
        style: Any = {**_STYLE, "svg.hashsalt": name}
        self._context = matplotlib.rc_context(style)
        self._context.__enter__()
        # 72 units an inch: SVG units are CSS pixels.
        self.figure: Figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        self.svg = ""

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.svg = themed(self._save(), self.name)
        finally:
            self._context.__exit__(None, None, None)

    def _save(self) -> str:
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        return file.getvalue()


def themed(svg: str, name: str) -> str:
    """The <svg> element alone, with the page's colours and font, and ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = svg.replace("'DejaVu Sans'", "var(--font)")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#|url\(#', lambda match: f"{match[0]}{name}-", svg)
    # The page sets the size; the figure's text says what it shows.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg \1aria-hidden="true" focusable="false"', svg, count=1)
    return re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", svg, count=1)
