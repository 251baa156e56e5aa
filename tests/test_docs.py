"""README and guides: links lead somewhere, commands name what exists, each block is run or says why not."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from vit_jax_mixer import config_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<why> *<!-- not run: [^\n]+ -->\n)?(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)(?P=indent)```", re.S
)
COMMAND = re.compile(r"^ *(?:[A-Z_]+=\S+ +)*(?:python3? -m|pip |make |vit-mixer )", re.M)


def _run_by_ci() -> set[str]:
    pages = re.search(r"readme_commands\.py ([^)\n]+)", (ROOT / ".ci/run").read_text())
    assert pages
    return set(pages[1].split())


def _commands(page: Path) -> list[list[str]]:
    """The command lines in a page's blocks of `sh`, with continued lines joined and comments left out."""
    text = "".join(block["text"] for block in BLOCK.finditer(page.read_text()) if block["kind"] == "sh")
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if COMMAND.match(line)]


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if heading:
            titles = {_anchor(title) for title in re.findall(r"^#+ (.+)$", found.read_text(), re.M)}
            assert heading in titles, f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_shell_block_is_run_or_says_why_not(page):
    name, ran = str(page.relative_to(ROOT)), _run_by_ci()
    for block in BLOCK.finditer(page.read_text()):
        lines = block["text"].lstrip()
        if block["kind"] in ("", "bash", "shell", "console") and COMMAND.search(block["text"]):
            assert lines.startswith("$ ") or "[" in lines, f"{name}: commands stand in blocks of sh, not {lines[:60]!r}"
        if block["kind"] == "sh" and name not in ran:
            assert block["why"], f"{name} is not run by .ci/run, so a comment says why not: {lines[:60]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_what_exists(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in _commands(page):
        if "-m" not in words[:4]:
            continue
        module = words[words.index("-m") + 1]
        if module.startswith(("vit_jax_mixer", "benchmarks")):
            assert importlib.util.find_spec(module), f"{page.name}: there is no {module}"
        arguments = words[words.index("-m") + 2 :]
        if module in ("vit_jax_mixer.main", "vit_jax_mixer.plan", "vit_jax_mixer.teacher"):
            named = [word for word in arguments if word.startswith("--config=")]
            if named and Path(named[0].removeprefix("--config=").partition(":")[0]).parent.name == "configs":
                config_file.take(["command", *arguments])  # a typo in a field is a UserError


def test_the_site_lists_every_page():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in nav, f"mkdocs.yml does not list {page.name}"
