"""What the import contracts and the linter cannot say about the shape of the code."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlx_manager"

LONGEST_MODULE_LINES = 500
MEDIAN_FUNCTION_LINES = 10
# Nine functions of ten are no longer than this.
LONG_FUNCTION_LINES = 40

# Patching hides a collaborator that should have been passed in; a few places have no other way.
PATCHES_ALLOWED = 5

# A setting is read where a process starts and passed down. The others hand the environment on:
MAY_READ_THE_ENVIRONMENT = {
    "cli.py",
    "main.py",
    "mlx_server/main.py",
    "mlx_server/workers/process.py",  # to the engine process
    "observability/setup.py",  # to OpenTelemetry, which is switched by variables
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_no_module_grows_past_its_size() -> None:
    sizes = {name(path): len(path.read_text().splitlines()) for path in modules(PACKAGE)}

    assert {path: size for path, size in sizes.items() if size > LONGEST_MODULE_LINES} == {}


def test_functions_stay_short() -> None:
    lengths = sorted(length(function) for path in modules(PACKAGE) for function in functions(path))

    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES
    assert lengths[len(lengths) * 9 // 10] <= LONG_FUNCTION_LINES


def test_only_what_starts_a_process_reads_the_environment() -> None:
    readers = {name(path) for path in modules(PACKAGE) if reads_environment(path)}

    assert readers - MAY_READ_THE_ENVIRONMENT == set()


def test_tests_hardly_patch_anything() -> None:
    patches = [
        f"{path.name}:{node.lineno}"
        for path in modules(ROOT / "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and called(node) in {"monkeypatch.setattr", "mocker.patch"}
    ]

    assert len(patches) <= PATCHES_ALLOWED, patches


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def length(function: Function) -> int:
    """Return the lines from `def` to the end, the docstring not counted."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    return total - len(docstring_lines(function))


def docstring_lines(function: Function) -> range:
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is None:
        return range(0)
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


def reads_environment(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
        for node in ast.walk(tree(path))
    )


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)
