"""The house in numbers: files, who imports them, names written twice, functions, comprehensions.

    python benchmarks/structure.py                  # this checkout
    python benchmarks/structure.py ../old ../new    # several, side by side

Counted from the source of finetune/ alone; nothing of it is run. "Chapters" are the files that hold
more than a docstring.
"""

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT = 60  # lines
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main() -> None:
    checkouts = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    columns = [counts(checkout / "finetune") for checkout in checkouts]
    width = max(map(len, columns[0]))
    print(" " * width, *(f"{checkout.name:>10}" for checkout in checkouts))
    for name in columns[0]:
        print(f"{name:<{width}}", *(f"{column[name]:>10}" for column in columns))


def counts(folder: Path) -> dict[str, str]:
    """Every figure of one checkout."""
    trees = {file: parsed(file) for file in sorted(folder.rglob("*.py"))}
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in trees}
    chapters = [file for file in trees if len(trees[file].body) > 1]
    importers = imported_by(folder, trees)
    stems = Counter(file.stem for file in trees if file.stem != "__init__")
    homes = defined_in(trees)
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    nodes = Counter(type(node) for tree in trees.values() for node in ast.walk(tree))
    comprehensions = sum(nodes[kind] for kind in COMPREHENSIONS)
    total = sum(lines.values())
    return {
        "files": str(len(trees)),
        "chapters": str(len(chapters)),
        "lines": str(total),
        f"chapters under {SHORT} lines": str(sum(lines[file] < SHORT for file in chapters)),
        "files with one importer": str(sum(len(some) == 1 for some in importers.values())),
        "file names in two rooms": str(sum(count > 1 for count in stems.values())),
        "public names in two files": str(sum(len(files) > 1 for files in homes.values())),
        "longest file": str(max(lines.values())),
        "functions": str(len(functions)),
        "longest function": str(max(functions)),
        "lines a function (mean)": f"{sum(functions) / len(functions):.1f}",
        "comprehensions in 100 lines": f"{100 * comprehensions / total:.1f}",
        "walruses": str(nodes[ast.NamedExpr]),
        "lambdas": str(nodes[ast.Lambda]),
    }


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_by(folder: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules that import it, for all but the scripts and the rooms themselves."""
    names = {dotted(folder, file): file for file in trees}
    found: dict[str, set[str]] = {
        name: set()
        for name, file in names.items()
        if name.startswith("slimtune.") and file.stem != "__init__"
    }
    for name, file in names.items():
        for target in targets(trees[file]):
            known = target if target in found else target.rpartition(".")[0]
            if known in found and known != name:
                found[known].add(name)
    return found


def targets(tree: ast.Module) -> Iterator[str]:
    """Full names of what is imported, wherever in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def dotted(folder: Path, file: Path) -> str:
    return ".".join(file.relative_to(folder).with_suffix("").parts)


def defined_in(trees: dict[Path, ast.Module]) -> dict[str, set[Path]]:
    """Public name -> the files that define it; `main` belongs to every script."""
    homes: dict[str, set[Path]] = defaultdict(set)
    for file, tree in trees.items():
        for node in tree.body:
            for name in names_of(node):
                if not name.startswith("_") and name != "main":
                    homes[name].add(file)
    return homes


def names_of(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


if __name__ == "__main__":
    main()
