"""What the repository says of itself is true: API descriptions, links, make targets."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from edgefleet_agent.cli import _parser as agent_parser
from edgefleet_cloud.cli import app as hub_app
from edgefleet_converters.cli import app as converter_app
from edgefleet_hardware.cli import app as compat_app

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


def shown_commands() -> list[str]:
    """Every command of ours in a shell block of the README and the guides."""
    found = []
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            found += re.findall(r"^edgefleet.*", block, re.MULTILINE)
    return found


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_that_the_guides_show_is_one_that_there_is(line: str) -> None:
    name, *words = [word for word in shlex.split(line, comments=True) if word != "&"]
    if name == "edgefleet-agent":
        agent_parser().parse_args(words)
        return
    command = typer.main.get_command(
        {
            "edgefleet": hub_app,
            "edgefleet-convert": converter_app,
            "edgefleet-compat": compat_app,
        }[name]
    )
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
