"""The floors of the package: imports point down, and the heavy or dangerous ones stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dipole_ray

PACKAGE = Path(dipole_ray.__file__).parent

# A room may import rooms on its own floor and below; a new file must be given its floor here.
FLOORS = (
    {"errors", "columns", "cores", "progress", "settings", "spans", "stopping", "tables"},
    {"cluster", "files"},
    {"parallel"},
    {"agents", "data"},
    {"replay", "tracking"},
    {"envs", "driving"},
    {"collect"},
    {"serving"},
    {"evaluation"},
    {"plots", "rllib"},
    {"runs"},
    {"sweep"},
    {"bench"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Third-party imports that a room is limited to, and libraries that only some rooms may import.
ALLOWED = {
    "agents": {"torch", "numpy", "safetensors", "triton", "numba", "llvmlite", "peft", "transformers"},
    "data": {"numpy", "pyarrow", "h5py", "requests", "urllib3", "PIL"},
    "replay": {"numpy", "pyarrow"},
    "driving": {"PIL", "numpy", "pyarrow", "safetensors", "scipy", "shapely", "tokenizers", "torch", "yaml"},
    "errors": set(),
    "columns": set(),
    "files": {"filelock", "safetensors", "torch"},
    "settings": {"yaml"},
    "progress": {"rich"},
    "tables": {"rich"},
}
HOMES = {"requests": {"data"}, "ray": {"cluster", "parallel", "sweep", "rllib"}, "mlflow": {"tracking"}}
HOMES |= {"shapely": {"driving"}, "scipy": {"driving"}}
LIGHT_FOR_AGENTS_AND_DATA = {"errors", "columns", "progress", "settings", "files"}

HEAVY = ("torch", "ray", "mlflow", "mujoco", "gymnasium", "pyarrow", "numpy", "matplotlib")


@cache
def _sources() -> list[tuple[str, Path, ast.Module]]:
    """Return (room, file, syntax tree) of every module but the package's own `__init__`."""
    files = {file: file.relative_to(PACKAGE).with_suffix("").parts for file in sorted(PACKAGE.rglob("*.py"))}
    return [(at[0], file, ast.parse(file.read_text())) for file, at in files.items() if at != ("__init__",)]


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted module) of every import, inside functions too."""
    package = ("dipole_ray", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "dipole_ray" else [module]
            yield from ((node.lineno, name) for name in names)


def _internal(name: str) -> str | None:
    """Return the room that a dotted import reaches, or None if it is not one of ours (`__version__` is no room)."""
    parts = name.split(".")
    is_room = parts[0] == "dipole_ray" and len(parts) > 1 and not parts[1].startswith("__")
    return parts[1] if is_room else None


def test_every_room_has_a_floor() -> None:
    rooms = {room for room, _, _ in _sources()}
    assert rooms <= FLOOR_OF.keys(), f"give these a floor in {Path(__file__).name}: {sorted(rooms - FLOOR_OF.keys())}"


def test_no_import_points_up() -> None:
    wrong = []
    for room, file, tree in _sources():
        for line, name in _imports(tree, file):
            target = _internal(name)
            if target is None or target == room:
                continue
            up = FLOOR_OF.get(target, -1) > FLOOR_OF.get(room, -1)
            aside = room in ("agents", "data") and target not in LIGHT_FOR_AGENTS_AND_DATA
            if up or aside:
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_stay_in_their_rooms() -> None:
    wrong = []
    for room, file, tree in _sources():
        for line, name in _imports(tree, file):
            library = name.split(".")[0]
            if library == "dipole_ray" or library in sys.stdlib_module_names:
                continue
            if library not in ALLOWED.get(room, {library}) or room not in HOMES.get(library, {room}):
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_one_file_imports_peft_and_one_transformers() -> None:
    """Either takes seconds, which nobody pays who has no adapters and no pictures of a camera."""
    for library, home in {"peft": "agents/adapters.py", "transformers": "agents/florence.py"}.items():
        found = {
            str(file.relative_to(PACKAGE))
            for _, file, tree in _sources()
            for _, name in _imports(tree, file)
            if library in name.split(".")
        }
        assert found == {home}


def test_files_import_each_other_one_way() -> None:
    """Only RLlib's own pair, an algorithm and its config, know each other."""
    reached: dict[str, set[str]] = {}
    for _, file, tree in _sources():
        module = ".".join(("dipole_ray", *file.relative_to(PACKAGE).with_suffix("").parts))
        reached[module] = {name for _, name in _imports(tree, file)}
    while True:
        further = {name: ones.union(*(reached.get(one, set()) for one in ones)) for name, ones in reached.items()}
        if further == reached:
            break
        reached = further
    circle = {name for name, ones in reached.items() if name in ones}
    assert circle <= {"dipole_ray.rllib.algorithm", "dipole_ray.rllib.config"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import dipole_ray, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in dipole_ray.__all__:
        assert getattr(dipole_ray, name).__name__ == name
