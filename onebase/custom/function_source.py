"""The source of a Python function that a recipe names: a resumed run needs the same one.

What counts is the file that holds the function and the files that it imports, and they import, as far as they are the
user's own: not Python's, not an installed package's, not Onebase's. Imports are read from the source: one
inside a function counts as well. Not seen are modules with a computed name, and files that are read as data.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onebase.files.writing import hash_file

_HOME = Path(__file__).resolve().parents[2]
_OURS = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
_LIBRARIES = (
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(_HOME / name for name in _OURS),
)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of packages, also where they are not this Python's own: of a user (`pip install --user`), of Debian."""


@dataclass(frozen=True)
class _Module:
    name: str
    file: Path
    is_package: bool

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


def source_sha256(dotted: str) -> str:
    """Of all files that count for `package.module:name`, which was loaded before; names count, places do not."""
    module_name, _, name = dotted.partition(":")
    function = getattr(importlib.import_module(module_name), name)
    start = {module_name, getattr(inspect.unwrap(function), "__module__", None) or module_name}
    root = module_name.partition(".")[0]
    hashes: dict[str, str] = {}
    waiting, seen = [module for name in start for module in _chain(name)], set[str]()
    while waiting:
        module = waiting.pop()
        if module.name in seen:
            continue
        seen.add(module.name)
        if not _counts(module, root) and module.name != module_name:
            continue
        hashes[module.name] = hash_file(module.file)
        waiting += [other for imported in _imports(module) for other in _chain(imported)]
    lines = "".join(f"{name}:{sha256}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _counts(module: _Module, root: str) -> bool:
    place = module.file.resolve()
    is_library = any(folder in place.parents for folder in _LIBRARIES) or not _INSTALLED.isdisjoint(place.parts)
    if not is_library:
        return True
    return module.name.partition(".")[0] == root and root not in _OURS and root not in sys.stdlib_module_names


def _chain(dotted: str) -> Iterator[_Module]:
    """The module of that name and the packages around it, found without running any of them."""
    parts, path = dotted.split("."), None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        loaded = sys.modules.get(name)
        spec = getattr(loaded, "__spec__", None) or importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return
        path = spec.submodule_search_locations
        if spec.origin is not None and Path(spec.origin).is_file():
            yield _Module(name, Path(spec.origin), path is not None)


def _imports(module: _Module) -> Iterator[str]:
    """Names that may be modules: `from a import b` names `a` and perhaps `a.b`."""
    if module.file.suffix != ".py":
        return
    try:
        tree = ast.parse(module.file.read_bytes())
    except (SyntaxError, ValueError):  # for another Python: it cannot be imported here either
        return
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                around = module.package.split(".")
                above = around[: len(around) - level + 1] if level else []
                start = ".".join([*above, *([source] if source else [])])
                if start:
                    yield start
                yield from (f"{start}.{alias.name}" if start else alias.name for alias in names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_], func=function):
                if ast.unparse(function).rpartition(".")[2] in ("import_module", "__import__"):
                    yield name.lstrip(".")
