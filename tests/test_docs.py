"""Every command and every piece of Python in the README and docs runs here, or stands in `docs_skipped.yaml` with a reason: the
README's with `make test`, those of docs/, which take a quarter of an hour, with `make conformance`.

Blocks of a page run in order in one empty folder. ```console: each line that begins with `$ ` is run by the shell.
```python: the blocks of a page are one script. A block whose info string has `file=NAME` is written to that file. Any other
block (text, yaml without a file) is prose. Commands see a virtual environment of their own, so `pip install` leaves no trace.

A plain `latentlm ...` of a page that installs nothing is called in a process forked from one that has imported torch, which
saves four seconds each.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from environments import fresh_environment
from latentlm.composed import build
from latentlm.config import Recipe
from latentlm.tokenizer import ByteTokenizer
from latentlm.training.setup import resolve

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SKIPPED: dict[str, str] = yaml.safe_load((ROOT / "tests" / "docs_skipped.yaml").read_text(encoding="utf-8"))
_BLOCK = re.compile(r"^```(\S*)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLAIN = re.compile(r"latentlm [^|&;<>$`*?~(){}\n]*")
"""Nothing in it that a shell would do something about."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["latentlm.cli", "latentlm.training", "latentlm_evals.compare_cli", "lm_eval.api.model"])
_PROSE = {"", "text", "yaml", "toml", "json", "bibtex", "mermaid"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is written to, its text."""

    language: str
    file: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    found = []
    for language, info, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        name = re.search(r"file=(\S+)", info)
        found.append(Block(language, name.group(1) if name else None, text))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a console block; a line that ends in a backslash goes on."""
    joined = block.text.replace("\\\n", " ")
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment on top of this one, first on the PATH."""
    return fresh_environment(tmp_path_factory.mktemp("docs-venv"), tmp_path_factory.mktemp("home"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.conformance if page.parent.name == "docs" else (), id=page.name) for page in PAGES],
)
def test_every_command_of_the_page_runs(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    script = []
    forked = not any(command.startswith("pip ") for block in blocks(page) for command in commands(block))
    for block in blocks(page):
        if block.file is not None:
            target = (tmp_path / block.file).resolve()
            assert target.is_relative_to(tmp_path), block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for command in commands(block):
                if command not in SKIPPED:
                    run = _call if forked and _PLAIN.fullmatch(command) else _run
                    run(["bash", "-c", command], environment, tmp_path, what=f"{page.name}: {command}")
        elif block.language == "python" and block.text.strip() not in SKIPPED:
            script.append(block.text)
            (tmp_path / "page_script.py").write_text("\n".join(script), encoding="utf-8")
    if script:
        _run(["python", "page_script.py"], environment, tmp_path, what=f"{page.name}: its Python blocks")


def _call(command: list[str], environment: dict[str, str], folder: Path, *, what: str) -> None:
    """The same as `_run`, of a plain `latentlm` command."""
    output = folder.parent / f"{folder.name}.output"
    process = FORKS.Process(target=_forked, args=(shlex.split(command[-1]), environment, folder, output))
    process.start()
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, f"{what} ended with {process.exitcode}\n{output.read_text(encoding='utf-8')[-5000:]}"


def _forked(words: list[str], environment: dict[str, str], folder: Path, output: Path) -> None:
    """In the child: what the shell would have set up, and the console script's function."""
    from latentlm.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    sys.argv = words
    main()


def _run(command: list[str], environment: dict[str, str], folder: Path, *, what: str) -> None:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{what} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block is run, written to a file, or in a language that is prose; a shell block of another name would slip through."""
    unknown = [b for b in blocks(page) if b.file is None and b.language not in {"console", "python", *_PROSE}]
    assert [block.language for block in unknown] == []
    lines = [line for block in blocks(page) if block.language == "" for line in block.text.splitlines()]
    bare = [line for line in lines if re.match(r"(\$ |latentlm |make |pip )", line)]
    assert bare == [], "commands belong into ```console blocks"


def model_blocks() -> list[tuple[str, str]]:
    """(page, YAML) of every block that shows a recipe's `model:`."""
    shown = [(page.name, block.text) for page in PAGES for block in blocks(page) if block.language == "yaml"]
    return [(name, text) for name, text in shown if re.search(r"^model:", text, re.MULTILINE)]


@pytest.mark.parametrize(("page", "text"), model_blocks(), ids=lambda value: value if value.endswith(".md") else "")
def test_every_model_that_a_page_shows_can_be_built(page: str, text: str) -> None:
    model = yaml.safe_load(text)["model"]
    builds({"decoder": "free"} | model)  # what shows a schedule alone, means any decoder with latents


@pytest.mark.parametrize("granularity", ["chunk:8", {"name": "line", "breaks": [10]}])
def test_the_other_granularities_of_the_comment_can_be_built_too(granularity: object) -> None:
    block = next(text for page, text in model_blocks() if page == "granularities.md")
    builds(yaml.safe_load(block)["model"] | {"granularity": granularity})


def builds(model: dict[str, object]) -> None:
    recipe = resolve(Recipe.model_validate({"model": model}), tokenizer=ByteTokenizer())
    assert list(build(recipe.model, device="meta").latents)


def test_skip_list_names_only_commands_that_the_pages_have() -> None:
    known = {command for page in PAGES for block in blocks(page) for command in commands(block)}
    known |= {block.text.strip() for page in PAGES for block in blocks(page) if block.language == "python"}
    assert sorted(set(SKIPPED) - known) == []
    assert all(reason.strip() for reason in SKIPPED.values())


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", prose):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_every_path_of_the_tour_is_there() -> None:
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 60
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert [folder for folder in re.findall(r"^(\w+)/ ", text, re.MULTILINE) if not (ROOT / folder).is_dir()] == []


def test_what_the_tour_names_is_in_the_file_beside_it() -> None:
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    lost = []
    for link, prose in re.findall(r"^\d+\. \[[^\]]+\]\(([^)]+)\): (.*)$", text, re.MULTILINE):
        source = (ROOT / "docs" / link).read_text(encoding="utf-8")
        names = {name for quoted in re.findall(r"`([\w.]+)`", prose) for name in quoted.split(".")}
        lost += [f"{link}: {name}" for name in sorted(names) if not re.search(rf"\b{name}\b", source)]
    assert lost == []


def test_the_reference_is_what_the_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build_reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_hook_and_contract_of_the_reference_has_an_example() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    contracts = {"latentlm_parts", "latentlm_cards", "Encoder", "Prior", "Injection", "KLSchedule", "LatentDecoder", "Part",
                 "Shape", "Batch", "Context", "Noise", "Distribution", "Latent", "Condition", "BlockCondition"}  # fmt: skip
    found = {section.split(maxsplit=1)[0]: "```python" in section for section in sections}
    assert contracts <= found.keys()
    assert [name for name in contracts if not found[name]] == []
