"""In msgspec's place on a machine where it cannot be installed: its structs as dataclasses, made and read only.

The engine needs no more of it than that; what reads a configuration does, and is not used by bench/gpu.py.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple


class Struct:
    """A class with annotations becomes a dataclass, with the options of its base where it gives none of its own."""

    options: ClassVar[dict[str, bool]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        own = {name: options[name] for name in ("frozen", "kw_only", "eq") if name in options}
        cls.options = {**cls.options, **own}
        for name in cls.__annotations__ if "__annotations__" in vars(cls) else ():
            if isinstance(vars(cls).get(name), dict | list | set):
                setattr(cls, name, dataclasses.field(default_factory=type(vars(cls)[name])))
        dataclasses.dataclass(**cls.options)(cls)  # pyright: ignore[reportCallIssue]
        cls.__struct_fields__ = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[attr-defined]
        cls.__struct_config__ = SimpleNamespace(tag=options.get("tag"))  # type: ignore[attr-defined]


class StructType(NamedTuple):
    """What is known of a struct: nothing, since nobody reads help here."""

    fields: tuple[()] = ()


class Meta:
    """What is said of a key; nobody asks here."""

    def __init__(self, **facts: object) -> None:
        self.facts = facts


def install() -> bool:
    """Let `import msgspec` find these, if it would find nothing. Returns whether it would not."""
    if find_spec("msgspec") is not None:
        return False
    module, structs = ModuleType("msgspec"), ModuleType("msgspec.structs")
    structs.replace = dataclasses.replace  # type: ignore[attr-defined]
    contents = {"Struct": Struct, "Meta": Meta, "field": dataclasses.field, "structs": structs, "UNSET": None,
                "NODEFAULT": None, "StructMeta": type,
                "inspect": SimpleNamespace(StructType=StructType, type_info=lambda _: StructType())}  # fmt: skip
    vars(module).update(contents)
    sys.modules |= {"msgspec": module, "msgspec.structs": structs}
    return True
