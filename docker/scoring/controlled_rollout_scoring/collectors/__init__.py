"""The two collectors of the old service, as scripts import them: `azureml.monitoring` and `azureml.ai.monitoring`.

The real packages write to the storage from the model's process, with a credential in its environment, or to a service
that is not there; the first one also takes over SIGTERM. So these modules take their place, installed or not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# What a module that scripts import has, and whether other modules are below it.
V1 = ("ModelDataCollector",)
V2 = ("Collector",)
CONTEXT = ("BasicCorrelationContext", "CorrelationContext", "get_context")
MODULES = {
    "azureml.monitoring": (V1, True),
    "azureml.monitoring.modeldatacollector": (V1, False),
    "azureml.ai.monitoring": (V2, True),
    "azureml.ai.monitoring.collector": (V2, False),
    "azureml.ai.monitoring.context": (CONTEXT, False),
}
PARENTS = ("azureml", "azureml.ai")


def install() -> None:
    """Let imports find these modules, before those of the environment and of the project."""
    if not any(isinstance(finder, Collectors) for finder in sys.meta_path):
        sys.meta_path.insert(0, Collectors())
        sys.meta_path.append(Parents())


class Collectors(MetaPathFinder, Loader):
    """Finds the collectors' modules, which are made when a script imports them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to make a module; None for other modules."""
        return ModuleSpec(name, self, is_package=MODULES[name][1]) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python create an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module."""
        from controlled_rollout_scoring.collectors import v1, v2

        source = v1 if module.__name__.startswith("azureml.monitoring") else v2
        names, _ = MODULES[module.__name__]
        vars(module).update({name: getattr(source, name) for name in names}, __all__=list(names))


class Parents(MetaPathFinder, Loader):
    """Makes the packages above them where the environment has none of these names; asked last."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to make a package; None for others."""
        if name not in PARENTS:
            return None
        spec = ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = SearchPath(name)
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python create an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Leave the package empty."""


class SearchPath(list[str]):
    """The folders of a package wherever `sys.path` has them by now: a script may add some later."""

    def __init__(self, package: str) -> None:
        super().__init__()
        self._folder = os.path.join(*package.split("."))

    def __iter__(self) -> Iterator[str]:
        return iter([os.path.join(entry, self._folder) for entry in sys.path])
