"""The one-line start-up file: `lm_eval --model latentlm` works from any folder after nothing but the install, and Python starts
as before. The wheel is built and installed for real, into environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = "latentlm_lm_eval.pth"
SOURCE = ROOT / "evals" / NAME
LOOK_UP = "import lm_eval.models; from lm_eval.api.registry import model_registry as r; print(r._objs.get('latentlm'))"


def run(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command elsewhere, without the variables that would put this repository on its path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LATENTLM_NO_LM_EVAL_HOOK")}
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=folder, env=kept | variables, capture_output=True, text=True, timeout=300, check=False)


def make_environment(folder: Path, *, see: Path | None = None) -> Path:
    """A bare environment; with `see`, that folder's packages can be imported too, but its start-up files are not read. Returns
    its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if see is not None:
        (site_packages(folder) / "zz_see.pth").write_text(f"{see}\n")
    return python


def site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python3*")) / "site-packages"


def pip_install(python: Path, *arguments: str) -> None:
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *arguments, folder=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    done = run(*command, folder=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("latentlm-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which sees lm-eval and torch where the tests run."""
    python = make_environment(tmp_path_factory.mktemp("installed") / "env", see=Path(sysconfig.get_path("purelib")))
    pip_install(python, str(wheel))
    return python


@pytest.fixture
def hooked(tmp_path: Path) -> Path:
    """An environment with the start-up file and nothing else; tests put a made-up lm_eval beside it."""
    python = make_environment(tmp_path / "env")
    (site_packages(tmp_path / "env") / NAME).write_text(SOURCE.read_text())
    return python


def made_up_lm_eval(folder: Path, registry: str, *, models: str = "") -> None:
    """An lm_eval package with this registry module and this `models` module."""
    for name, text in {"__init__": "", "api/__init__": "", "api/registry": registry, "models": models}.items():
        path = folder / "lm_eval" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


REGISTRY = """
class Registry(dict):
    def register(self, name, *, target):
        self[name] = target
model_registry = Registry()
"""
SHOW = "import lm_eval.models; from lm_eval.api import registry; print(dict(registry.model_registry))"


# ------------------------------------------------------------------------------------------------ what is shipped


def test_the_start_up_file_is_one_line_that_begins_with_import() -> None:
    lines = SOURCE.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import ")
    assert "pth" not in (ROOT / ".gitignore").read_text()


def test_the_wheel_holds_the_start_up_file_and_only_our_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read(NAME).decode() == SOURCE.read_text()
    tops = {name.partition("/")[0] for name in names}
    assert all(top.startswith("latentlm") for top in tops), tops
    assert {"latentlm", "latentlm_evals", "latentlm_zoo", "latentlm_vanilla", "latentlm_free", "latentlm_schedules"} <= tops
    assert {f"latentlm_evals/tasks/{name}" for name in ("short.yaml", "data.py", "copy.jsonl", "LICENSE-PSF.txt")} <= set(names)
    assert "latentlm/py.typed" in names


def test_an_editable_install_has_the_start_up_file_too(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", see=Path(sysconfig.get_path("purelib")))
    pip_install(python, "--no-build-isolation", "-e", str(ROOT))
    assert (site_packages(tmp_path / "env") / NAME).read_text() == SOURCE.read_text()
    assert run(python, "-c", LOOK_UP, folder=tmp_path).stdout.strip() == "latentlm_evals.adapter:LatentLM"


# ----------------------------------------------------------------------------------------------------- what it does


@pytest.mark.slow
def test_lm_eval_evaluates_a_latentlm_model_from_any_folder(python: Path, tmp_path: Path) -> None:
    tasks = run(python, "-m", "latentlm.cli", "eval", "--task-path", folder=tmp_path)
    assert "site-packages" in tasks.stdout, tasks.stderr
    done = run(
        *(python, "-m", "lm_eval", "--model", "latentlm", "--model_args", "model=free-tiny,allow_random=true,samples=2"),
        *("--tasks", "latentlm_brackets", "--include_path", tasks.stdout.strip(), "--limit", "1"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "latentlm_brackets" in done.stdout


def test_lm_eval_finds_the_name_without_importing_anything_of_ours(python: Path, tmp_path: Path) -> None:
    show = f"{LOOK_UP}; import sys; print([m for m in sys.modules if m.startswith('latentlm') or m == 'torch'])"
    assert run(python, "-c", show, folder=tmp_path).stdout.split("\n")[:2] == ["latentlm_evals.adapter:LatentLM", "[]"]


def test_the_environment_variable_switches_it_off(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", LOOK_UP, folder=tmp_path, LATENTLM_NO_LM_EVAL_HOOK="1").stdout.strip() == "None"


# ---------------------------------------------------------------------------------------------- what it never does


def test_python_without_lm_eval_starts_and_fails_to_import_it_as_ever(hooked: Path, tmp_path: Path) -> None:
    silent = run(hooked, "-X", "dev", "-W", "error", "-c", "", folder=tmp_path)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    missing = run(hooked, "-c", "import lm_eval.models", folder=tmp_path)
    assert missing.stderr.strip().endswith("ModuleNotFoundError: No module named 'lm_eval'")


def test_there_is_one_finder_though_python_reads_the_file_twice_and_none_after_its_use(hooked: Path, tmp_path: Path) -> None:
    made_up_lm_eval(tmp_path, REGISTRY)
    count = "print(sum(getattr(finder, '__name__', '') == 'LatentlmFinder' for finder in sys.meta_path))"
    done = run(hooked, "-c", f"import sys; {count}; import lm_eval.models; {count}", folder=tmp_path)
    assert done.stdout.split() == ["1", "0"]


def test_a_name_that_is_taken_stays_with_its_owner(hooked: Path, tmp_path: Path) -> None:
    made_up_lm_eval(tmp_path, REGISTRY, models="from lm_eval.api.registry import model_registry as r\nr['latentlm'] = 'other'")
    assert run(hooked, "-c", SHOW, folder=tmp_path).stdout.strip() == "{'latentlm': 'other'}"


def test_an_lm_eval_with_discovery_of_its_own_is_left_alone(hooked: Path, tmp_path: Path) -> None:
    made_up_lm_eval(tmp_path, REGISTRY + "def load_plugins(group, registry): ...\n")
    assert run(hooked, "-c", SHOW, folder=tmp_path).stdout.strip() == "{}"


@pytest.mark.parametrize("registry", ["", "model_registry = None", "raise RuntimeError('broken')"])
def test_an_lm_eval_of_another_make_is_imported_without_a_word(hooked: Path, tmp_path: Path, registry: str) -> None:
    made_up_lm_eval(tmp_path, registry)
    done = run(hooked, "-W", "error", "-c", "import lm_eval.models", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_error_inside_lm_eval_models_is_still_raised(hooked: Path, tmp_path: Path) -> None:
    made_up_lm_eval(tmp_path, REGISTRY, models="raise RuntimeError('theirs')")
    assert "RuntimeError: theirs" in run(hooked, "-c", "import lm_eval.models", folder=tmp_path).stderr


def test_it_imports_nothing_at_start(tmp_path: Path) -> None:
    """A start-up line that imports nothing new costs next to nothing."""
    code = (
        "import os, sys; line = open(sys.argv[1]).read(); before = set(sys.modules); exec(line);"
        "print(sorted(set(sys.modules) - before))"
    )
    assert run(sys.executable, "-S", "-c", code, SOURCE, folder=tmp_path).stdout.strip() == "[]"
