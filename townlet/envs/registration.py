"""Makes the Town known to Gymnasium: at once where Gymnasium is loaded, else at the end of its import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from .ids import TOWN_ID


def register_town() -> None:
    """Register `townlet/Town-v0`, now or as soon as Gymnasium is imported, which takes longer than all settings do."""
    if "gymnasium" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watch())


def _register() -> None:
    import gymnasium

    if TOWN_ID not in gymnasium.registry:
        home = f"{__package__}.town.env"
        gymnasium.register(TOWN_ID, f"{home}:TownEnv", vector_entry_point=f"{home}:TownVectorEnv")


class _Watch:
    """A finder of modules that finds Gymnasium only, and has its import end with the Town's registration."""

    def __init__(self) -> None:
        self._asking = False  # the other finders, for Gymnasium

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Gymnasium's own specification, whose loader also registers the Town; None for every other module."""
        if name != "gymnasium" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                _register()

            setattr(spec.loader, "exec_module", load_and_register)  # noqa: B010  mypy knows it as a method
        return spec
