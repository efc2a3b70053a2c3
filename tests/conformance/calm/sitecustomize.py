"""Real engines on a small machine: let NIXL's progress thread sleep a millisecond between two looks.

Found on PYTHONPATH by every Python process of an engine. NIXL 1.5.0 polls without a pause (`pthrDelay = 0`): that is
a whole core of every engine for ever, also of an idle one; two engines on two cores then take seconds for a transfer.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MICROSECONDS = 1000


class Calm(MetaPathFinder, Loader):
    """Loads NIXL's bindings as they are, then replaces the class of its settings."""

    def __init__(self) -> None:
        self._real: Any = None

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Take part in the import of one module."""
        if not name.endswith("._bindings") or not name.startswith("nixl_cu") or self._real is not None:
            return None
        self._real = self  # the search below comes here again
        spec = find_spec(name)
        if spec is None:
            return None
        self._real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> Any:
        """Make the module."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module, and change what it offers."""
        self._real.exec_module(module)
        config: Any = module.nixlAgentConfig
        delay = config.pthrDelay

        class Config(config):  # type: ignore[misc]
            """Settings that never poll without a pause."""

            pthrDelay = property(delay.__get__, lambda self, value: delay.__set__(self, max(value, MICROSECONDS)))

        module.nixlAgentConfig = Config


sys.meta_path.insert(0, Calm())
