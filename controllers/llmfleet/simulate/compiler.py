"""Whether loops over millions of requests are compiled, and the arrays they work on.

In: a function of plain loops over arrays. Out: the same function as machine code when numba is installed (an extra of
this package), and as it is when not. Arrays are numpy's with it and lists without; both hold the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

COMPILED: Final = find_spec("numba") is not None
WORTH: Final = 50_000
"""Requests; the first compilation takes half a minute, which fewer of them do not make good."""


def fast(function: F) -> F:
    """The function as fast as it can be had; nothing about floats is relaxed."""
    if not COMPILED:
        return function
    numba = import_module("numba")
    try:
        compiled: F = numba.njit(cache=True)(function)
    except RuntimeError:
        # Nowhere to keep the machine code: it is made anew in each process.
        compiled = numba.njit(function)
    return compiled


def suited(function: F, requests: int) -> F:
    """The function as it is best used for so many requests."""
    plain: F = getattr(function, "py_func", function)
    return function if requests >= WORTH else plain


def floats(values: Iterable[float]) -> Any:
    """An array of floats."""
    if not COMPILED:
        return list(values)
    numpy = import_module("numpy")
    return numpy.array(values if hasattr(values, "__len__") else list(values), dtype=numpy.float64)


def integers(values: Iterable[int]) -> Any:
    """An array of whole numbers."""
    if not COMPILED:
        return list(values)
    numpy = import_module("numpy")
    return numpy.array(values if hasattr(values, "__len__") else list(values), dtype=numpy.int64)


def longer(array: Any, size: int, fill: float) -> Any:
    """The array with room for more."""
    if not COMPILED:
        return array + [fill] * (size - len(array))
    numpy = import_module("numpy")
    return numpy.concatenate([array, numpy.full(size - len(array), fill, dtype=array.dtype)])
