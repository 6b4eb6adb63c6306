"""`import stillhouse`: quick, complete, typed; and four packages that can be called."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stillhouse
from stillhouse.callable_package import CallablePackage

HEAVY = ["torch", "transformers", "pyarrow", "matplotlib", "numpy", "openai", "pydantic", "cyclopts"]
CALLABLE = ["evaluate", "export", "serve", "trace"]
STUB = Path(stillhouse.__file__).with_suffix(".pyi")


def stub_names() -> dict[str, str]:
    """Name -> module, as type checkers see it."""
    tree = ast.parse(STUB.read_text("utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"stillhouse.{node.module}" for node in imports for alias in node.names}


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys; import stillhouse as st; st.evaluate, st.serve, st.trace, st.export, st.__version__; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_type_checkers_see_the_names_that_there_are():
    assert sorted(stub_names()) == stillhouse.__all__ == dir(stillhouse)
    assert (STUB.parent / "py.typed").exists()


@pytest.mark.parametrize("name", stillhouse.__all__)
def test_every_name_is_documented_and_typed(name):
    value = getattr(stillhouse, name)
    in_stub = getattr(importlib.import_module(stub_names()[name]), name)
    function = value._function if isinstance(value, CallablePackage) else value
    assert function is in_stub
    doc = inspect.getdoc(function)
    assert doc and len(doc) > 20
    if inspect.isfunction(function):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter
            assert f"{parameter.name}" in doc, f"{name}() does not document {parameter.name}"
        assert "Args:" in doc and "Raises:" in doc


@pytest.mark.parametrize("name", CALLABLE)
def test_a_name_is_the_package_before_and_after_the_package_is_imported(name):
    package = importlib.import_module(f"stillhouse.{name}")
    assert getattr(stillhouse, name) is package
    assert callable(package)
    function = getattr(package, name)
    assert inspect.signature(package) == inspect.signature(function)
    assert dir(package) == sorted(package.__all__)


def test_a_call_of_a_package_calls_its_function(monkeypatch):
    monkeypatch.setattr(stillhouse.evaluate, "evaluate", lambda *args, **options: (args, options))
    assert stillhouse.evaluate(1, 2, speed=True) == ((1, 2), {"speed": True})
