"""Text that is there wherever Python is: the documentation in its own library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from pydoc_data import topics

# Shorter docstrings say little more than a signature.
SHORTEST = 300


def builtin_text() -> list[str]:
    """The language reference that pydoc shows and the longer docstrings of the library's own modules.

    About 270,000 tokens of technical English with code in it, the same on every machine for one
    version of Python; its licence is Python's. docs/calibration.md says what it is worth.
    """
    library = Path(sysconfig.get_path("stdlib"))
    texts = [text for _, text in sorted(topics.topics.items())]
    for file in sorted(library.glob("*.py")):
        texts.extend(_docstrings(file))
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST]


def _docstrings(file: Path) -> list[str]:
    tree = ast.parse(file.read_bytes())
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return [text for text in found if text]
