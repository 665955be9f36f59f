"""Every public name says what it is, what it takes, what it raises; the examples in docstrings are true."""

import ast
import doctest
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import ROOT, pages

SOURCES = sorted([*(ROOT / "ilwp_plugin").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")])
WITH_EXAMPLES = [path for path in SOURCES if ">>>" in path.read_text(encoding="utf-8")]
FEW = 2
"""Parameters that a sentence explains as well as a list does."""


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name.replace("integrations", "ilwp_integrations", 1) if name.startswith("integrations") else name


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_of)
def test_examples(path: Path) -> None:
    found = doctest.testmod(importlib.import_module(module_of(path)), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(path: Path) -> Iterator[tuple[str, Definition]]:
    """What `__all__` of a module lists and the module defines, with the public methods of its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names |= set(ast.literal_eval(node.value))
    for node in tree.body:
        if isinstance(node, Definition) and node.name in names:
            yield node.name, node
            if isinstance(node, ast.ClassDef) and not overrides(node):
                for inner in node.body:
                    setter = any(ast.unparse(d).endswith(".setter") for d in getattr(inner, "decorator_list", ()))
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith(("_", "test_")) and not setter:
                        yield f"{node.name}.{inner.name}", inner


def overrides(node: ast.ClassDef) -> bool:
    """Whether a class has a base whose methods have docstrings, which its own inherit."""
    plain = {
        "BaseModel",
        "ABC",
        "Translated",
        "Protocol",
        "Exception",
        "Generic",
        "nn",
        "str",
        "int",
        "dict",
        "NamedTuple",
    }
    return any(ast.unparse(base).partition(".")[0].partition("[")[0] not in plain for base in node.bases)


def faults(name: str, node: Definition) -> Iterator[str]:
    said = ast.get_docstring(node)
    if not said:
        yield f"{name}: no docstring"
        return
    if isinstance(node, ast.ClassDef):
        return
    own = node.args
    parameters = [p for p in [*own.posonlyargs, *own.args, *own.kwonlyargs] if p.arg not in ("self", "cls")]
    if len(parameters) > FEW and "Args:" not in said:
        missing = [p.arg for p in parameters if p.arg not in said]
        if missing:
            yield f"{name}: {', '.join(missing)} not explained"
    if "Args:" in said:
        listed = said.partition("Args:")[2]
        yield from (f"{name}: Args without {p.arg}" for p in parameters if p.arg not in listed)
    raised = {
        exc.func.id
        for statement in ast.walk(node)
        if isinstance(statement, ast.Raise)
        and isinstance(exc := statement.exc, ast.Call)
        and isinstance(exc.func, ast.Name)
        and exc.func.id.endswith("Error")
    }
    yield from (f"{name}: raises {error}, and does not say so" for error in sorted(raised) if error not in said)


def site_pages() -> ModuleType:
    """What makes the reference of the site."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "building" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented() -> set[str]:
    """The names that the reference of the site shows, by where they are defined."""
    own = site_pages()
    modules = [m for group in own.API.values() for m in group if own.source_of(m) is not None]
    return {home for m in modules for name in own.public_names(m) if (home := own.home_of(m, name)) is not None}


def constants(path: Path) -> Iterator[tuple[str, bool]]:
    """The names that a module assigns, and whether a docstring follows."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, behind in zip(body, [*body[1:], None], strict=True):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        said = (
            isinstance(behind, ast.Expr)
            and isinstance(behind.value, ast.Constant)
            and isinstance(behind.value.value, str)
        )
        yield from ((target.id, said) for target in targets if isinstance(target, ast.Name))


def test_what_pages_import_is_in_the_reference() -> None:
    """So it is a public name, and the test below asks for its docstring."""
    pytest.importorskip("mkdocs")
    names, building = documented(), site_pages()
    for page in pages():
        for block in page.blocks:
            if block.language == "python":
                for node in ast.walk(ast.parse(block.content)):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ilwp_"):
                        homes = {building.home_of(node.module, alias.name) for alias in node.names}
                        assert homes <= names, f"{page.name}:{block.line}: not in the reference: {homes - names}"


def test_public_names_say_what_they_are() -> None:
    pytest.importorskip("mkdocs")
    names = documented()
    assert len(names) > 150
    found = []
    for path in SOURCES:
        for name, node in public(path):
            if f"{module_of(path)}.{name.partition('.')[0]}" in names:
                found += [f"{module_of(path)}: {fault}" for fault in faults(name, node)]
        for name, said in constants(path):
            if f"{module_of(path)}.{name}" in names and not said:
                found.append(f"{module_of(path)}: {name}: no docstring behind it")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8").strip()
    assert not text or ast.get_docstring(ast.parse(text)) or path.name == "_version.py"
