"""Imports go one way, and nothing below the solvers knows of tensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep

SOURCE = Path(fewstep.__file__).parent
# Each room may import from those before it.
ROOMS = [
    "signals", "files", "arguments", "store", "models", "prompts", "schedule", "grid", "answers", "prediction",
    "statistics", "solvers", "table", "sampling", "tuning", "analysis", "transition", "guidance", "edit", "restore",
    "api", "pictures", "runs", "integrations", "adapters", "stream", "cheaper", "bench", "cli", "__main__",
]  # fmt: skip
TENSOR_FREE = ["signals", "files", "arguments", "store", "models", "prompts", "schedule", "grid", "prediction"]


def files(room):
    folder = SOURCE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{room}.py"]


def imports(tree, path):
    """(module, whether only for type checking) of every import, relative ones resolved to rooms of fewstep."""
    package = ["fewstep", *path.relative_to(SOURCE).parts[:-1]]
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            for alias in node.names:
                yield (f"{base.rstrip('.')}.{alias.name}", id(node) in guarded)


def test_every_file_has_a_room():
    known = {path for room in ROOMS for path in files(room)} | {SOURCE / "__init__.py"}
    assert set(SOURCE.rglob("*.py")) == known


def test_imports_go_one_way():
    for place, room in enumerate(ROOMS):
        allowed = {*ROOMS[: place + 1], "__version__"}
        for path in files(room):
            for module, only_types in imports(ast.parse(path.read_text()), path):
                assert not module.startswith("benchmarks"), f"{path.name} imports {module}"
                if module.startswith("fewstep.") and not only_types:
                    assert module.split(".")[1] in allowed, f"{path.name} imports {module}"


def test_what_solvers_share_imports_no_solver():
    core = "fewstep.solvers.core."
    for path in files("solvers/core"):
        for module, _ in imports(ast.parse(path.read_text()), path):
            assert not module.startswith("fewstep.solvers.") or module.startswith(core), f"{path.name} imports {module}"


def test_a_solver_is_told_on_a_page():
    lines = {path.name: len(path.read_text().splitlines()) for path in files("solvers")}
    assert max(lines.values()) <= 230, lines


def test_no_torch_below_the_solvers():
    for room in TENSOR_FREE:
        for path in files(room):
            for module, only_types in imports(ast.parse(path.read_text()), path):
                assert only_types or not module.startswith("torch"), f"{path.name} imports {module}"


@pytest.mark.parametrize(
    ("statement", "allowed"), [("import fewstep", ()), ("from fewstep import sample", ("torch", "numpy"))]
)
def test_importing_fewstep_imports_torch_when_it_is_used_and_nothing_heavier(statement, allowed):
    heavy = "torch", "numpy", "diffusers", "transformers", "scipy", "typer", "rich", "PIL", "safetensors", "accelerate"
    code = f"import sys; {statement}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(allowed)


def test_the_package_has_the_names_of_its_api():
    code = "from fewstep import *; import fewstep; print(set(fewstep.__all__) <= set(dir()) & set(dir(fewstep)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    with pytest.raises(AttributeError, match="module 'fewstep' has no attribute 'Euler'"):
        fewstep.Euler  # noqa: B018


def test_nothing_is_unpickled_and_no_code_is_run_from_files():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "torch.load":  # of tensors alone
                    assert "weights_only=True" in [ast.unparse(each) for each in node.keywords], path
                    continue
                assert name not in {"pickle.load", "pickle.loads", "eval", "exec"}, f"{path}: {name}"
