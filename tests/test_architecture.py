"""The folder is the flow: who may import whom, which module is the door to which library, and what stays unloaded.

Imports are read from the source with `ast`, those inside functions included: that is where cycles hide.
"""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import LONGEST_FIRST

import fewshot
from fewshot.extras import EXTRAS

ROOT = Path(fewshot.__file__).parent

# From the bottom to the top. A module imports from its own layer and those above it in this list, nothing below it.
LAYERS = [
    {"errors", "records"},
    {"recipes", "extras", "memory"},
    {"sealed", "images", "decoding", "datasets", "samples"},
    {"transforms", "backbones", "portable", "networks", "losses"},
    {"engines", "tuning", "embedder", "cluster"},
    {"store", "search"},
    {"classifier", "backup"},
    {"gallery", "training", "evaluation", "projection"},
    {"service", "watching"},
    {"cli"},
]

# library: the only modules (a folder counts as one) that may import it.
DOORS = {
    "timm": {"networks"},
    "huggingface_hub": {"networks"},
    "onnx": {"portable"},
    "pytorch_metric_learning": {"losses"},
    "faiss": {"search"},
    "yaml": {"recipes"},
    "click": {"cli"},
    "rich": {"cli"},
    "sqlalchemy": {"store"},
    "sqlite3": {"store", "watching"},
    "psycopg": {"store"},
    "pgvector": {"store"},
    "alembic": {"store"},
    "openvino": {"engines"},
    "PIL": {"images", "decoding", "samples", "training"},
    "torch": {"networks", "portable", "losses", "engines", "training"},
    "torchvision": {"training"},
    "cv2": {"training"},
    "fastapi": {"service", "watching"},
    "starlette": {"service", "watching"},
    "umap": {"projection"},
    "plotly": {"projection"},
    "pyarrow": {"projection", "cluster"},
    "ray": {"cluster", "service"},
    "tensorboard": {"projection"},
    "matplotlib": {"projection", "training"},
    "httpx": {"watching"},
    "watchfiles": {"watching"},
    "mpl_toolkits": {"projection"},
}

HEAVY = {"torch", "timm", "faiss", "openvino", "numpy", "sqlalchemy", "PIL", "sklearn", "yaml"}
HEAVY |= {"umap", "plotly", "pyarrow", "matplotlib", "tensorboard", "ray"}


def room(module):
    """The layer's name for a module: `cli` for `fewshot.cli.main`."""
    return module.split(".")[1] if "." in module else ""


@cache
def modules():
    """Every module of the package and its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module):
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports(module):
    """The full names of everything that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the package, so that imports can be searched"
            # `from fewshot import images` is the module, `from fewshot.images import decode` what is in it.
            found.update(
                full if (full := f"{node.module}.{alias.name}") in modules() else str(node.module)
                for alias in node.names
            )
    return frozenset(found)


def own_imports(module):
    return {name for name in imports(module) if name in modules()}


def libraries(module):
    return {name.split(".")[0] for name in imports(module)} - {"fewshot"}


def everything_below(module):
    """All own modules that a module can reach."""
    reached, waiting = set(), [module]
    while waiting:
        for name in own_imports(waiting.pop()) - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def layer_of(module):
    return next(number for number, layer in enumerate(LAYERS) if room(module) in layer)


# ---- the layers


def test_the_reader_of_imports_sees_them_wherever_they_hide():
    """Without this the other tests could pass by seeing nothing."""
    assert "fewshot.errors" in own_imports("fewshot.images")
    assert "fewshot.gallery" in own_imports("fewshot.cli.options")  # inside a function
    assert "fewshot.images" in own_imports("fewshot.gallery.gallery")  # `from fewshot import images`
    assert "openvino" in libraries("fewshot.engines")
    assert "fewshot.errors" in everything_below("fewshot.cli.main")
    assert len(modules()) > 25


def test_every_module_has_its_layer():
    known = set().union(*LAYERS)
    assert {name for name in modules() if room(name) not in known} == {"fewshot"}


def test_no_name_stands_in_two_layers():
    assert sum(len(layer) for layer in LAYERS) == len(set().union(*LAYERS))


def test_no_lower_layer_imports_a_higher_one():
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if room(module)
        for name in own_imports(module)
        if room(name) and layer_of(name) > layer_of(module)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", [name for name in modules() if room(name)])
def test_no_module_reaches_itself(module):
    assert module not in everything_below(module)


def test_rooms_have_no_cycle_either():
    """Two folders whose modules import each other crosswise are one room with a wall in it."""
    rooms = {room(module): set() for module in modules() if room(module)}
    for module in modules():
        if room(module):
            rooms[room(module)] |= {room(name) for name in own_imports(module)} - {room(module), ""}
    for name in rooms:
        reached, waiting = set(), [name]
        while waiting:
            for other in rooms[waiting.pop()] - reached:
                reached.add(other)
                waiting.append(other)
        assert name not in reached


# ---- the doors


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library):
    users = {room(module) for module in modules() if library in libraries(module)}
    assert users <= DOORS[library]


@pytest.mark.parametrize(
    "library", ["timm", "onnx", "pytorch_metric_learning", "faiss", "yaml", "click", "sqlalchemy", "PIL"]
)
def test_no_door_is_only_painted_on(library):
    assert any(library in libraries(module) for module in modules())


def test_the_package_itself_holds_its_version_only():
    docstring, version = tree("fewshot").body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(version, ast.Assign)
    assert [ast.unparse(target) for target in version.targets] == ["__version__"]


@pytest.mark.parametrize("module", ["errors", "records"])
def test_the_lowest_layer_imports_nothing_but_numpy_and_the_standard_library(module):
    name = f"fewshot.{module}"
    assert own_imports(name) == set()
    assert libraries(name) - set(sys.stdlib_module_names) <= ({"numpy"} if module == "records" else set())


@pytest.mark.parametrize(
    ("name", "never"),
    [
        ("recipes", {"torch", "faiss"}),
        ("images", {"torch", "faiss"}),
        ("datasets", {"torch", "faiss"}),
        ("losses", {"timm", "faiss"}),
        ("backbones", {"torch", "timm", "faiss"}),
        ("networks", {"faiss"}),
        ("engines", {"faiss"}),
        ("embedder", {"faiss", "timm", "ray"}),
        ("store", {"faiss", "torch"}),
        ("search", {"torch"}),
        ("classifier", {"torch", "faiss", "sqlalchemy", "safetensors"}),
        ("gallery", {"torch", "faiss", "click", "fastapi", "ray"}),
        ("watching", {"click", "fastapi", "torch", "faiss", "PIL", "yaml"}),
        ("evaluation", {"torch", "faiss", "click", "fastapi"}),
    ],
)
def test_a_room_never_imports_what_is_not_its_own(name, never):
    inside = [module for module in modules() if room(module) == name]
    assert inside
    assert not set().union(*(libraries(module) for module in inside)) & never


@pytest.mark.parametrize(
    ("module", "never"), [("store", {"faiss", "torch"}), ("search", {"torch"}), ("images", {"torch"})]
)
def test_not_even_through_another_module(module, never):
    name = f"fewshot.{module}"
    assert not set().union(*(libraries(each) for each in {name} | everything_below(name))) & never


def test_search_knows_no_labels():
    nodes = [node for module in modules() if room(module) == "search" for node in ast.walk(tree(module))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    assert "VectorIndex" in names | {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    assert not {name for name in names if "label" in name}


def test_training_never_imports_faiss_nor_the_index():
    for module in (name for name in modules() if room(name) == "training"):
        assert not {room(name) for name in everything_below(module)} & {"search", "store", "gallery"}, module


# ---- the base install


# These rooms and modules need an extra; everything else is the base.
NEED_AN_EXTRA = {"training", "losses", "networks", "portable", "projection"}
# So do these modules in other rooms: ray, and scikit-learn's metrics.
NEED_AN_EXTRA_THEMSELVES = {"fewshot.cluster.spreading", "fewshot.cluster.workers", "fewshot.service.replicas"}
NEED_AN_EXTRA_THEMSELVES |= {"fewshot.evaluation.metrics"}
# module: the libraries of an extra that it imports inside a function, behind `extras.need` or what stands for it.
LATE = {
    "fewshot.engines": {"torch"},  # the engine on a GPU
    "fewshot.store.server": {"psycopg", "pgvector"},  # an index in a database
    "fewshot.store.vectors": {"pgvector"},
    "fewshot.transforms": {"sklearn"},  # measuring statistics, which training does
}


def imports_at_once(module):
    """What a module imports when it is imported itself: not in functions, not for type checkers alone."""
    waiting, found = list(tree(module).body), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update({str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


BASE = [name for name in modules() if room(name) not in {"", *NEED_AN_EXTRA} and name not in NEED_AN_EXTRA_THEMSELVES]
OF_EXTRAS = {name for names in EXTRAS.values() for name in names} | {"torchvision", "mpl_toolkits", "google", "scipy"}


def test_imports_at_once_are_told_from_late_ones():
    assert "fewshot.gallery" in imports_at_once("fewshot.service.maps")
    assert "fewshot.gallery" not in imports_at_once("fewshot.cli.options")  # for type checkers and in a function
    assert "torch" in imports_at_once("fewshot.networks")
    assert len(BASE) > 40


@pytest.mark.parametrize("module", BASE)
def test_the_base_imports_no_library_of_an_extra(module):
    assert not {name.split(".")[0] for name in imports_at_once(module)} & OF_EXTRAS
    assert libraries(module) & OF_EXTRAS == LATE.get(module, set())


@pytest.mark.parametrize("module", BASE)
def test_the_base_imports_what_needs_an_extra_only_when_it_is_asked_for(module):
    own = {name for name in imports_at_once(module) if name.startswith("fewshot.")}
    assert not {room(name) for name in own} & NEED_AN_EXTRA
    assert not own & NEED_AN_EXTRA_THEMSELVES


# ---- the modules' first lines


def first_line(module):
    return (ast.get_docstring(tree(module)) or "").split("\n")[0]


@pytest.mark.parametrize("module", modules())
def test_every_module_says_in_one_line_what_it_owns(module):
    assert first_line(module).endswith(".")
    assert len(first_line(module)) > 10


def test_no_two_modules_own_the_same():
    lines = [first_line(module) for module in modules()]
    assert len(set(lines)) == len(lines)


# ---- what stays unloaded


def loaded_by(code, *arguments):
    """The libraries in memory after `code` ran in an interpreter of its own."""
    report = "import atexit, json, sys\natexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n"
    finished = subprocess.run(
        [sys.executable, "-c", report + code, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.split(".")[0] for name in json.loads(finished.stdout.splitlines()[-1])}


def test_importing_the_command_line_loads_no_heavy_library():
    loaded = loaded_by("import fewshot.cli")
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_importing_the_package_loads_nothing():
    assert loaded_by("import fewshot") & (HEAVY | {"click"}) == set()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_load_no_heavy_library(argument):
    loaded = loaded_by("import sys; sys.argv[0] = 'fewshot'; from fewshot.cli import main; main()", argument)
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_a_mistyped_command_loads_no_heavy_library():
    code = """
import sys
sys.argv[0] = 'fewshot'
from fewshot.cli import main
try:
    main()
except SystemExit as stopped:
    assert stopped.code == 2, stopped.code
"""
    assert loaded_by(code, "enrol") & HEAVY == set()


# ---- the tests themselves


def test_the_test_files_that_begin_first_are_there_each_once():
    assert len(set(LONGEST_FIRST)) == len(LONGEST_FIRST)
    assert set(LONGEST_FIRST) <= {path.name for path in Path(__file__).parent.glob("test_*.py")}
