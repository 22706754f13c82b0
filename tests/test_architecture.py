"""The floors of the house: imports go down only, and one folder knows the trainer's inside."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "lightning_tuning"
FILES = sorted(PACKAGE.rglob("*.py"))

# the floor of each place; a file imports from lower floors, or from its own folder
FLOORS = {"findings": 0, "functional": 0, "plots": 1, "_trainer": 1, "callbacks": 2}
FLOORS |= {"workflow": 3, "ensembles": 3, "search": 3, "cli_errors": 4, "cli": 5, "": 4}
HEAVY = {"matplotlib": {"plots"}, "optuna": {"search"}}


def place(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else named(parts[0])


def named(part: str) -> str:
    """Return the place's name: pictures have a file for each kind."""
    return "plots" if part.startswith("plot_") else part


def imports(tree: ast.AST) -> list[tuple[str, int, bool]]:
    """Return (absolute module, line, at module level) for each import."""
    top = set(getattr(tree, "body", []))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found.append((node.module, node.lineno, node in top))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = place(path)
    for module, line, top_level in imports(ast.parse(path.read_text())):
        heavy = HEAVY.get(module.split(".")[0])
        assert heavy is None or not top_level, f"{path}:{line} imports {module} at module level"
        if not module.startswith("lightning_tuning"):
            if FLOORS[here] == 0:
                assert not module.startswith("lightning"), f"{path}:{line} floor 0 knows no Trainer"
            continue
        there = named([*module.split("."), ""][1])
        same_folder = there == here and here not in ("callbacks", "")
        init = path.name == "__init__.py" and there == here
        # a result draws itself: the picture's code is imported when it is asked for
        deferred_plots = there == "plots" and not top_level
        below = FLOORS[there] < FLOORS[here] or (FLOORS[there] == FLOORS[here] == 0)
        assert same_folder or init or below or deferred_plots, f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_trainer_folder_reaches_into_the_trainer(path):
    if place(path) == "_trainer":
        return
    private = [
        f"{path}:{node.lineno} trainer.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).split(".")[0:2][-1] in ("trainer", "strategy", "fit_loop")
    ]
    assert not private


def test_every_folder_has_a_floor():
    assert {place(path) for path in FILES} <= set(FLOORS)


def test_public_names_are_sorted_and_exist():
    import lightning_tuning

    assert lightning_tuning.__all__ == sorted(lightning_tuning.__all__)
    assert all(hasattr(lightning_tuning, name) for name in lightning_tuning.__all__)
