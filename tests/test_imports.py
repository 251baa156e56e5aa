"""Imports go one way: whoever opens a file knows what it may use, and what may use it."""

import ast
from pathlib import Path

from tests.helpers import ROOT

# Each line may import what stands below it. A name is a file or a room at the top of the package, whose own files
# may import each other; a room's `__main__` is a door.
ORDER = """
    demo
    main predict evaluate teacher convert export plan landscape sweep inspection distributed __main__
    train
    command_line completion
    config_file
    overrides
    configs
    evaluation predictions
    run
    tasks
    trained
    predictors probes
    pretrained
    models data
    cli checkpoints classes config charts
    specs drawing
    files plugins special_tokens startup
    errors
"""
LINES = [line.split() for line in ORDER.split("\n") if line.strip()]
PLACE = {name: number for number, line in enumerate(LINES) for name in line}
LEAVES = {name for line in LINES[PLACE["cli"] :] for name in line}
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): path
    for path in (ROOT / "vit_jax_mixer").rglob("*.py")
}


def imported(path):
    """Yield the modules of ours that a file imports, wherever it does; what is for type checkers alone is left out."""
    tree = ast.parse(path.read_text())
    checked = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    untyped = {id(inner) for node in checked for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in untyped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by dots"
            assert node.module  # where there are no dots
            module = {"configs": "vit_jax_mixer.configs"}.get(node.module, node.module)
            for alias in node.names:
                yield from (name for name in (f"{module}.{alias.name}", module) if name in FILES)


def room(module):
    return module.split(".")[1] if "." in module else ""


def place(module):
    return PLACE["__main__"] if module.endswith("__main__") else PLACE[room(module)]


def test_each_file_and_room_has_its_place():
    assert {room(module) for module in FILES} - {""} == PLACE.keys()


def test_no_import_goes_up():
    wrong = []
    for module in filter(room, FILES):
        leaves_alone = room(module) in ("models", "data") and not module.endswith("__main__")
        for other in imported(FILES[module]):
            if room(other) not in ("", room(module)) and (
                place(other) <= place(module) or (leaves_alone and room(other) not in LEAVES)
            ):
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_the_doors_are_opened_by_nobody():
    doors = {*LINES[0], *LINES[1]} - {
        "demo",
        "export",
        "plan",
        "landscape",
        "sweep",
        "__main__",
    }  # rooms, whose door is their `__main__`
    for module, path in FILES.items():
        for other in imported(path):
            assert room(other) not in doors or room(module) == room(other), f"{module} imports {other}"
            assert not other.endswith("__main__"), f"{module} imports {other}"


def test_the_drawing_of_the_house_names_each_room():
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {
        path.name for path in (ROOT / "vit_jax_mixer").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    for name in rooms:
        assert f"`{name}/" in text, f"docs/architecture.md does not name {name}/"
    for path in Path(ROOT / "vit_jax_mixer").glob("*.py"):
        if path.name not in ("__init__.py", "distributed.py"):
            assert f"`{path.name}`" in text, f"docs/architecture.md does not name {path.name}"
