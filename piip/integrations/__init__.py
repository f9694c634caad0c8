"""Adapters that make pyramids parts of other libraries' models, and predictions objects of other libraries.

One module per library, imported by name: `import piip.integrations.torchvision`. No other part of the package imports
them, apart from methods of the same purpose, such as `to_supervision()` of predictions. `levels` is shared: maps whose
strides are powers of two.

A new adapter is a module here named after the library, a section in `docs/integrations.md`, an example in `examples/`
and an extra in `pyproject.toml`. It raises an ImportError with `missing` where its library is absent.
"""

from __future__ import annotations


def missing(library: str, extra: str) -> str:
    """Return what an adapter says where its library is not installed.

    Args:
        library: Name of the library.
        extra: What pip installs, e.g. "piip[smp]".
    """
    return f'This adapter needs {library}: pip install "{extra}".'
