# SPDX-License-Identifier: Apache-2.0
"""Measure the structure of the code at any revision: python -m tests.house [REVISION …]

Without a revision, the files as they are. Modules and their imports, between which folders, cycles of imports
that run at once, modules per folder, long functions, public names, and where one network's name stands.
"""

import ast
import io
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tests.revisions.revision import ROOT, git

PRODUCT = ("engine", "export", "runtime", "serving", "benchmarks", "src")
LAYERS = ("engine", "runtime", "src")
"""Where the name of a network belongs into its record alone."""
MAX_MODULES = 16
"""In one folder, those of its sub-folders aside."""
MAX_FUNCTION_LINES = 70
NETWORK = "lamp_unet"


@dataclass(frozen=True)
class Import:
    """module imports `imports`, another module of the product. eager: when it is itself imported, neither in
    a function nor for type checkers alone."""

    module: str
    imports: str
    eager: bool


@dataclass(frozen=True)
class House:
    """files: path below the root → text, of the product's Python files."""

    files: Mapping[str, str]

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """By module."""
        return {module_of(path): ast.parse(text) for path, text in self.files.items()}

    @cached_property
    def imports(self) -> set[Import]:
        found = set()
        for module, tree in self.trees.items():
            for node, eager in _with_eagerness(tree):
                for name in _names(node, self.trees):
                    if name != module:
                        found.add(Import(module, name, eager))
        return found

    @cached_property
    def pairs(self) -> set[tuple[str, str]]:
        """(importing module, imported module), however often and wherever."""
        return {(each.module, each.imports) for each in self.imports}

    def between_folders(self) -> Counter[tuple[str, str]]:
        """(importing folder, imported folder) → pairs of modules; those inside one folder are left out."""
        folders = ((self.folder(one), self.folder(other)) for one, other in self.pairs)
        return Counter(pair for pair in folders if pair[0] != pair[1])

    def entries(self, top: str) -> tuple[set[str], set[tuple[str, str]]]:
        """The modules and sub-folders of a top folder, and the pairs of which one imports the other."""
        prefix = f"lamp_trt.{top}."
        inside = {m: m.removeprefix(prefix).partition(".")[0] for m in self.trees if m.startswith(prefix)}
        pairs = {(inside[a], inside[b]) for a, b in self.pairs if a in inside and b in inside}
        return {*inside.values()}, {(a, b) for a, b in pairs if a != b}

    def eager_cycles(self) -> list[list[str]]:
        """Groups of modules each of which runs every other when it is imported, directly or not. An import
        runs the packages around the imported module too, except those around the importing one."""
        graph = {module: set[str]() for module in self.trees}
        for each in self.imports:
            if each.eager:
                run = {each.imports, *_around(each.imports)} & self.trees.keys()
                graph[each.module] |= run - {each.module, *_around(each.module)} | {each.imports}
        reach = {module: _reachable(graph, module) for module in graph}
        groups = {frozenset({m, *(n for n in reach[m] if m in reach[n])}) for m in graph if m in reach[m]}
        return sorted(sorted(group) for group in groups)

    def folder(self, module: str) -> str:
        """The folder, like engine.bundle, that a module's file is in."""
        inner = module.removeprefix("lamp_trt").removeprefix(".")
        return (inner if module in self.packages else inner.rpartition(".")[0]) or "lamp_trt"

    @cached_property
    def packages(self) -> set[str]:
        return {module_of(path) for path in self.files if path.endswith("/__init__.py")}

    def modules_per_folder(self) -> Counter[str]:
        return Counter(PurePosixPath(path).parent.as_posix() for path in self.files)

    def long_functions(self) -> list[tuple[str, int]]:
        """(module.function, lines with decorators), longest first, of more than MAX_FUNCTION_LINES."""
        found = [
            (f"{module}.{node.name}", node.end_lineno - _first_line(node) + 1)
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        ]
        return sorted((f for f in found if f[1] > MAX_FUNCTION_LINES), key=lambda f: -f[1])

    def files_naming(self, text: str, *folders: str) -> dict[str, int]:
        """How often `text` stands in each file below the folders, strings and comments included."""
        counts = {p: t.count(text) for p, t in self.files.items() if p.split("/", 1)[0] in folders}
        return {path: count for path, count in counts.items() if count}

    def public_names(self) -> int:
        """Functions, classes and constants of modules that do not begin with an underscore."""
        return sum(
            not name.startswith("_")
            for tree in self.trees.values()
            for node in tree.body
            for name in _made(node)
        )


def module_of(path: str) -> str:
    """lamp_trt.engine.errors of engine/errors.py."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "src" else ["lamp_trt", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def house_now(root: Path = ROOT) -> House:
    paths = (path for top in PRODUCT for path in (root / top).rglob("*.py"))
    return House({path.relative_to(root).as_posix(): path.read_text() for path in sorted(paths)})


def house_at(revision: str) -> House:
    there = git("ls-tree", "--name-only", revision).decode().split()
    tops = [top for top in PRODUCT if top in there]
    with tarfile.open(fileobj=io.BytesIO(git("archive", revision, *tops))) as archive:
        members = [each for each in archive if each.isfile() and each.name.endswith(".py")]
        texts = {each.name: file.read().decode() for each in members if (file := archive.extractfile(each))}
    return House(dict(sorted(texts.items())))


def _with_eagerness(tree: ast.AST, eager: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        yield node, eager
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _with_eagerness(node, eager and not lazy and not typing)


def _names(node: ast.AST, modules: Mapping[str, object]) -> Iterator[str]:
    """Modules of the product that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module in modules:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in modules else node.module


def _around(module: str) -> list[str]:
    """Names of the packages around a module: a, a.b of a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(graph[module])
    return found


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _made(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


FIGURES: dict[str, Callable[[House], int]] = {
    "modules": lambda house: len(house.trees),
    "lines": lambda house: sum(text.count("\n") for text in house.files.values()),
    "folders": lambda house: len(house.modules_per_folder()),
    "most modules in a folder": lambda house: max(house.modules_per_folder().values()),
    f"folders of more than {MAX_MODULES}": lambda h: sum(
        n > MAX_MODULES for n in h.modules_per_folder().values()
    ),
    "imports, pairs of modules": lambda house: len(house.pairs),
    "of them between folders": lambda house: sum(house.between_folders().values()),
    "pairs of folders": lambda house: len(house.between_folders()),
    "eager import cycles": lambda house: len(house.eager_cycles()),
    f"functions of more than {MAX_FUNCTION_LINES} lines": lambda house: len(house.long_functions()),
    "public names": lambda house: house.public_names(),
    f"{NETWORK}: files": lambda house: len(house.files_naming(NETWORK, *PRODUCT)),
    f"{NETWORK}: files of {', '.join(LAYERS)}": lambda house: len(house.files_naming(NETWORK, *LAYERS)),
}
for _top in ("engine", "runtime", "export", "benchmarks"):
    FIGURES[f"{_top}: entries"] = lambda house, top=_top: len(house.entries(top)[0])
    FIGURES[f"{_top}: imports between them"] = lambda house, top=_top: len(house.entries(top)[1])


def table(rows: Mapping[str, list[int]], heads: list[str]) -> str:
    width = max(map(len, rows), default=0)
    lines = [f"{'':{width}}" + "".join(f"{head:>14}" for head in heads)]
    lines += [f"{name:{width}}" + "".join(f"{figure:>14}" for figure in row) for name, row in rows.items()]
    return "\n".join(lines)


def side_by_side(counts: list[Mapping[str, int]]) -> dict[str, list[int]]:
    return {name: [each.get(name, 0) for each in counts] for name in sorted(set().union(*counts))}


def main(*revisions: str) -> None:
    heads = [revision[:12] for revision in revisions] or ["now"]
    houses = [house_at(revision) for revision in revisions] or [house_now()]
    print(table({name: [count(house) for house in houses] for name, count in FIGURES.items()}, heads))
    arrows = [{f"{a} → {b}": n for (a, b), n in house.between_folders().items()} for house in houses]
    naming = [house.files_naming(NETWORK, *PRODUCT) for house in houses]
    parts = {
        "modules per folder": side_by_side([house.modules_per_folder() for house in houses]),
        "imports from folder to folder": side_by_side(arrows),
        f"{NETWORK} by file": side_by_side(naming),
        "long functions": side_by_side([dict(house.long_functions()) for house in houses]),
    }
    for title, rows in parts.items():
        print(f"\n{title}\n{table(rows, heads)}")
    for head, house in zip(heads, houses, strict=True):
        for cycle in house.eager_cycles():
            print(f"\neager import cycle in {head}: {' → '.join([*cycle, cycle[0]])}")


if __name__ == "__main__":
    main(*sys.argv[1:])
