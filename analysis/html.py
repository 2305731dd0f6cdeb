"""Pages: offline HTML from our templates with embedded figures and escaped text, and formats of numbers."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import jinja2

from mdrelax.analysis.drawing import scientific
from mdrelax.base.files import write_atomically

__all__ = ["duration", "embedded", "number", "plain", "write_page"]


def write_page(path: Path, template: str, /, **contents: Any) -> Path:
    """Write a page from one of the templates in this folder, atomically."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": number,
        "error": scientific,
        "plain": plain,
        "duration": duration,
        "text": json.dumps,
    }
    write_atomically(path, environment.get_template(template).render(**contents).encode())
    return path


def embedded(image: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def number(value: Any) -> str:
    """Three digits, a dash for missing values, words for values that are not finite."""
    if value is None:
        return "–"
    if not math.isfinite(value) or not 1e-3 <= abs(value) < 1e5:
        return scientific(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def plain(value: Any) -> str:
    """A setting as it was typed: 0.5, 300; a dash if missing."""
    return "–" if value is None else f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
