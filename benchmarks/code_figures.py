"""Figures of the code itself: counts of mechanisms, branches on a kind, and words.

    python benchmarks/code_figures.py [--repo DIR]

One JSON line per figure on stdout. Counts are of the package unless they say "repository".
"""

import argparse
import ast
import json
import pathlib
import re

WORDS = {
    "draw": r"\b([Dd]raw(s|n|er|ing)?|[Dd]rew)\b",
    "told": r"\b[Tt](old|ell|ells|elling)\b",
    "piece": r"[Pp]iece",
    "noised": r"\b[Nn]oised",
    "averaged": r"averaged",
    "history": r"\bhistory\b",
    "released": r"\breleased\b",
    "beside, anew, so many, at hand, mend": r"\b(beside|anew|so many|at hand|mend(s|ed)?)\b",
    "doubt": r"\bdoubts?\b",
    "settle, claim, pace, placed": r"\b(settle[sd]?|claim(s|ed)?|pace|placed)\b",
}
KIND_CHECKS = (
    r"\.objective\s*(==|!=|in\b|not in\b)",
    r"\.objective\.(startswith|endswith)",
    r"\.kind\s*(==|!=)",
    r"isinstance\([\w.]*embedder",
    r"getattr\((config|other), \"lora\"",
    r"(getattr|hasattr)\(source",
)


def python_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the Python files below a folder, without environments and build results."""
    skipped = {".venv", "build", "__pycache__", ".git"}
    return [p for p in sorted(folder.rglob("*.py")) if not skipped & set(p.parts)]


def imports(path: pathlib.Path) -> set[str]:
    """Collect the dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def import_cycles(package: pathlib.Path) -> int:
    """Count pairs of files that import each other, directly or through others."""
    root = package.parent
    modules = {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p
        for p in python_files(package)
    }
    graph = {name: (imports(path) & modules.keys()) - {name} for name, path in modules.items()}
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        reach[start] = seen
    return sum(a < b and b in reach[a] and a in reach[b] for a in graph for b in graph)


def figures(repo: pathlib.Path) -> dict[str, float]:
    """Compute every figure, by name."""
    package = repo / "xgen_jax"
    files = python_files(package)
    text = "\n".join(path.read_text() for path in files)
    everything = [*python_files(repo), *repo.glob("*.md"), *(repo / "docs").glob("*.md")]
    whole = "\n".join(path.read_text() for path in everything)
    lines = [line for line in text.splitlines() if line.strip()]
    training = {
        f"{path}: {name}"
        for module in ("inference", "evaluation")
        for path in python_files(package / module)
        for name in imports(path)
        if name.startswith("xgen_jax.training.") and name.split(".")[-1][0].isupper() is False
    }
    configs = "\n".join(path.read_text() for path in python_files(repo / "configs"))
    return {
        "files of the package": len(files),
        "lines of the package": len(text.splitlines()),
        "files of training/": len(python_files(package / "training")),
        "imports of training by inference and evaluation": len(training),
        "places that ask what kind something is": sum(
            len(re.findall(check, text)) for check in KIND_CHECKS
        ),
        "circles of files": import_cycles(package),
        "os.replace": text.count("os.replace("),
        '"there -> here" refusals': text.count("there -> here"),
        '"is not known; choose"': len(re.findall(r"is not known[^\n]{0,40}; choose", text)),
        "placeholder lines in configs": len(re.findall(r"= config_dict\.placeholder", configs)),
        "lines past 100 characters, %": round(
            100 * sum(len(x) > 100 for x in lines) / len(lines), 2
        ),
        "comments, % of lines": round(
            100 * sum(x.lstrip().startswith("#") for x in lines) / len(lines), 2
        ),
        "files past 400 lines": sum(len(p.read_text().splitlines()) > 400 for p in files),
        "files under 40 lines, __init__ left out": sum(
            len(p.read_text().splitlines()) < 40 for p in files if p.name != "__init__.py"
        ),
        **{f"word: {name}": len(re.findall(pattern, text)) for name, pattern in WORDS.items()},
        **{
            f"word, repository: {name}": len(re.findall(pattern, whole))
            for name, pattern in WORDS.items()
        },
    }


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = pathlib.Path(__file__).resolve().parents[1]
    parser.add_argument("--repo", type=pathlib.Path, default=here)
    for name, value in figures(parser.parse_args().repo).items():
        print(json.dumps({"figure": name, "value": value}))


if __name__ == "__main__":
    main()
