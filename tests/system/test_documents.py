"""What the repository says of itself is true: API descriptions, links, make targets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_asyncapi_description_is_made_from_the_code() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "asyncapi.py")],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads((ROOT / "docs" / "asyncapi.json").read_text()) == json.loads(made), (
        "docs/asyncapi.json is out of date: run `make api`"
    )


def test_the_openapi_description_is_made_from_the_code() -> None:
    made = subprocess.run(
        [str(Path(sys.executable).parent / "edgefleet"), "openapi"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads((ROOT / "docs" / "openapi.json").read_text()) == json.loads(made), (
        "docs/openapi.json is out of date: run `make api`"
    )


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_to_files_of_the_repository_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if name not in targets] == []


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "index.html").is_file()
