# SPDX-License-Identifier: Apache-2.0
"""The structure that the code keeps, and the tool that measures it. Layers: cli/test_package.py."""

import pytest

from tests.house import LAYERS, MAX_FUNCTION_LINES, MAX_MODULES, NETWORK, House, house_at, house_now
from tests.revisions.revision import git


@pytest.fixture(scope="module")
def now() -> House:
    return house_now()


def test_no_import_leads_back_to_its_module(now: House) -> None:
    assert len(now.trees) > 200
    assert now.eager_cycles() == []


def test_functions_are_short(now: House) -> None:
    assert now.long_functions() == [], f"of more than {MAX_FUNCTION_LINES} lines"


def test_folders_are_small(now: House) -> None:
    counts = now.modules_per_folder()
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_a_network_is_named_in_its_record(now: House) -> None:
    assert len(now.files_naming(NETWORK, *LAYERS)) <= 4


# --- the tool ---------------------------------------------------------------------------------------------

EMPTY = {"src/lamp_trt/__init__.py": "", "engine/__init__.py": ""}


def house(files: dict[str, str]) -> House:
    """Modules of the engine, by name like p/a."""
    return House({**EMPTY, **{f"engine/{name}.py": text for name, text in files.items()}})


TWO = ["lamp_trt.engine.a", "lamp_trt.engine.b"]


@pytest.mark.parametrize(
    ("a", "b", "cycles"),
    [
        ("from lamp_trt.engine import b", "import lamp_trt.engine.a", [TWO]),
        ("from lamp_trt.engine.b import name", "from lamp_trt.engine.a import name", [TWO]),
        ("try:\n    import lamp_trt.engine.b\nexcept ImportError: pass", "import lamp_trt.engine.a", [TWO]),
        ("class A:\n    import lamp_trt.engine.b", "import lamp_trt.engine.a", [TWO]),
        ("def f():\n    import lamp_trt.engine.b", "import lamp_trt.engine.a", []),
        ("if TYPE_CHECKING:\n    import lamp_trt.engine.b", "import lamp_trt.engine.a", []),
        ("if typing.TYPE_CHECKING:\n    import lamp_trt.engine.b", "import lamp_trt.engine.a", []),
        ("import lamp_trt.engine.b", "", []),
        ("import numpy", "import lamp_trt.engine.a", []),
    ],
)
def test_a_cycle_is_one_of_imports_that_run_at_once(a: str, b: str, cycles: list[list[str]]) -> None:
    assert house({"a": a, "b": b}).eager_cycles() == cycles


def test_an_import_runs_the_packages_around_the_module() -> None:
    """b imports p.a, which runs p first, which imports b: half of b is there. From p it goes well."""
    through = house(
        {"p/__init__": "import lamp_trt.engine.b", "p/a": "", "b": "from lamp_trt.engine.p import a"}
    )
    assert through.eager_cycles() == [["lamp_trt.engine.b", "lamp_trt.engine.p"]]
    own = house({"p/__init__": "import lamp_trt.engine.p.a", "p/a": "import lamp_trt.engine.p.b", "p/b": ""})
    assert own.eager_cycles() == []


def test_imports_are_counted_by_folder() -> None:
    counted = house(
        {
            "p/__init__": "",
            "p/a": "from lamp_trt.engine.p import b\nfrom lamp_trt.engine.errors import X, Y",
            "p/b": "def f():\n    from lamp_trt.engine.errors import X",
            "errors": "X = Y = 1\n_Z = 2\nclass E: pass\ndef f(): ...\na, b = 1, 2\nc: int = 3",
        }
    )
    assert counted.between_folders() == {("engine.p", "engine"): 2}
    assert len(counted.pairs) == 3
    assert counted.entries("engine") == ({"p", "errors"}, {("p", "errors")})
    assert counted.modules_per_folder() == {"engine": 2, "engine/p": 3, "src/lamp_trt": 1}
    assert counted.public_names() == 8
    assert counted.files_naming("errors", "engine") == {"engine/p/a.py": 1, "engine/p/b.py": 1}
    assert counted.files_naming("errors", "runtime") == {}


def test_a_long_function_is_found_with_its_decorators() -> None:
    body = "\n".join(["def short():", *["    x = 1"] * 69, "class C:", "    @cache", "    def long(self):"])
    body += "\n        y = 2" * 69
    assert house({"a": body}).long_functions() == [("lamp_trt.engine.a.long", 71)]


def test_a_revision_is_read_from_git() -> None:
    """Where there is a history at all."""
    try:
        text = git("show", "HEAD:engine/errors.py").decode()
    except SystemExit as error:
        pytest.skip(str(error))
    then = house_at("HEAD")
    assert then.files["engine/errors.py"] == text
    assert then.files.keys() >= {"runtime/stages.py", "src/lamp_trt/cli.py"}
    with pytest.raises(SystemExit, match="no-such-revision"):
        house_at("no-such-revision")
