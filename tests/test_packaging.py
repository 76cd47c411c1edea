"""What is installed: from a clone, in an editable installation, from the wheel and from the sdist.

`make packages` installs wheel and sdist into fresh environments and runs the examples there; here their contents are
checked, which takes seconds.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import cram_jax as cj

ROOT = Path(__file__).parents[1]
SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cram_jax").rglob("*.py")} | {
    f"cram_jax/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")
}
BUILD = """
from setuptools import build_meta
build_meta.build_sdist("dist")
build_meta.build_wheel("dist")
build_meta.build_editable("dist/e")
"""


def python(code: str, cwd: Path) -> str:
    """Returns what the code prints in this interpreter, as for a user: the clone and its tests are not on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist, the wheel, and in `e/` the wheel of an editable installation."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("cram_jax", "kernels", "examples"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("[!.]*.*"):
        if path.is_file():
            shutil.copy(path, clone)
    shutil.copy(ROOT / "LICENSE", clone)
    python(BUILD, clone)
    return clone / "dist"


def test_the_folder_of_the_kernels_is_at_the_top_and_a_link_in_the_package():
    assert (ROOT / "kernels").is_dir() and not (ROOT / "kernels").is_symlink()
    assert (ROOT / "cram_jax/kernels").is_symlink()
    assert os.readlink(ROOT / "cram_jax/kernels") == "../kernels"


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    (path,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    assert names == SOURCES | {"cram_jax/py.typed"}


def test_the_sdist_holds_the_kernels_inside_the_package(dist):
    (path,) = dist.glob("*.tar.gz")
    members = tarfile.open(path).getmembers()
    assert not any(member.issym() for member in members)
    names = {member.name.split("/", 1)[-1] for member in members if member.isfile()}
    assert SOURCES | {"cram_jax/py.typed", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


def test_an_editable_installation_maps_the_package_and_nothing_else(dist):
    (path,) = (dist / "e").glob("*.whl")
    wheel = zipfile.ZipFile(path)
    (finder,) = (name for name in wheel.namelist() if name.endswith("_finder.py"))
    mapping = re.search(r"^MAPPING.*= (\{.*\})$", wheel.read(finder).decode(), re.MULTILINE)
    assert set(eval(mapping.group(1))) == {"cram_jax"}


def test_this_environment_has_no_top_level_kernels(tmp_path):
    code = "import importlib.util as u; import cram_jax.kernels; print(u.find_spec('kernels'))"
    assert python(code, tmp_path) == "None\n"


def test_the_package_index_gets_no_dead_link(dist):
    (path,) = dist.glob("*.whl")
    metadata = zipfile.ZipFile(path).read(f"cram_jax-{cj.__version__}.dist-info/METADATA").decode()
    text = HeaderParser().parsestr(metadata).get_payload()
    assert "# cram_jax" in text and "https://arxiv.org/abs/2602.12204" in text
    assert [target for target in re.findall(r"\]\(([^)]*)\)", text) if not target.startswith("https:")] == []


def test_there_is_one_version(dist):
    (path,) = dist.glob("*.whl")
    assert path.name.startswith(f"cram_jax-{cj.__version__}-")
    citation, changes = (ROOT / "CITATION.cff").read_text(), (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == cj.__version__
    assert re.search(r"^## ([\d.]+)", changes, re.MULTILINE).group(1) == cj.__version__


def test_import_is_quick_and_imports_no_jax(tmp_path):
    code = "import time; t = time.perf_counter(); import cram_jax, sys; print(time.perf_counter() - t, *sys.modules)"
    seconds, *modules = python(code, tmp_path).split()
    assert float(seconds) < 0.1
    assert not {"jax", "flax", "numpy"} & set(modules)


@pytest.mark.parametrize("name", cj.__all__)
def test_a_public_name_is_what_it_says(name):
    value = getattr(cj, name)
    assert name in dir(cj)
    if name != "__version__":
        assert value.__name__.rsplit(".", 1)[-1] == name


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Cram'; public names: .*CRAM, CRAMConfig"):
        cj.Cram  # noqa: B018
