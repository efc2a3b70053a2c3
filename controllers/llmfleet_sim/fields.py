"""Read the fields of a JSON body with pydantic's rules and vLLM's wording.

In: an untyped mapping. Out: typed values, or ApiError with the field's path. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmfleet_sim.errors import Problem, invalid

_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}


class Fields:
    """A body whose problems are collected and raised together."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        self.problems: list[Problem] = []

    def check(self) -> None:
        """Raise what was found."""
        if self.problems:
            raise invalid(self.problems)

    def need(self, *names: str) -> None:
        """Ask for fields that must be there."""
        for name in names:
            if name not in self.body:
                self.problems.append(Problem("missing", f"body.{name}", "Field required", self.body))

    def _wrong(self, kind: str, name: str, text: str, value: Any) -> None:
        self.problems.append(Problem(kind, f"body.{name}", text, value))

    def integer(self, name: str, default: int | None = None, *, nullable: bool = True) -> int | None:
        """Read an int; whole floats and numeric strings count."""
        value = self.body.get(name, default)
        if value is None and name in self.body and not nullable:
            self._wrong("int_type", name, "Input should be a valid integer", value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        return self._loose_integer(name, value)

    def _loose_integer(self, name: str, value: Any) -> int | None:
        text = "Input should be a valid integer"
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            self._wrong("int_from_float", name, text + ", got a number with a fractional part", value)
        elif isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                self._wrong("int_parsing", name, text + ", unable to parse string as an integer", value)
        else:
            self._wrong("int_type", name, text, value)
        return None

    def number(self, name: str, default: float | None = None) -> float | None:
        """Read a float; numeric strings count."""
        value = self.body.get(name, default)
        if value is None or isinstance(value, (int, float)):
            return None if value is None else float(value)
        text = "Input should be a valid number"
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                self._wrong("float_parsing", name, text + ", unable to parse string as a number", value)
        else:
            self._wrong("float_type", name, text, value)
        return None

    def boolean(self, name: str, default: bool = False) -> bool:
        """Read a bool; null is the default."""
        value = self.body.get(name, default)
        if isinstance(value, bool):
            return value
        if value is None:
            return default
        word = str(value).lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        self._wrong("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)
        return default

    def string(self, name: str) -> str | None:
        """Read a string or null."""
        value = self.body.get(name)
        if value is None or isinstance(value, str):
            return value
        self._wrong("string_type", name, "Input should be a valid string", value)
        return None

    def strings(self, name: str) -> tuple[str, ...]:
        """Read a string or a list of them."""
        value = self.body.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
            return tuple(value)
        self._wrong("string_type", name, "Input should be a valid string", value)
        self._wrong("list_type", name, "Input should be a valid list", value)
        return ()

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """Read an object or null."""
        value = self.body.get(name)
        if value is None or isinstance(value, Mapping):
            return value
        self._wrong("dict_type", name, "Input should be a valid dictionary", value)
        return None

    def items(self, name: str) -> list[Any]:
        """Read a list."""
        value = self.body.get(name)
        if value is None and name not in self.body:
            return []
        if isinstance(value, list):
            return value
        self._wrong("list_type", name, "Input should be a valid list", value)
        return []
