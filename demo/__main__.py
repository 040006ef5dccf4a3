"""`python -m demo`: the whole loop, in under five minutes on two cores.

Exits with 0 only if everything that the demo sets out to show was seen.
"""

import shutil
import sys
from pathlib import Path

from rich.console import Console

from demo import findings, report
from demo.fleet import DemoError
from demo.report import Json
from demo.story import Story
from edgefleet_cloud.cli.output import CliError

FOLDER = Path("build/demo")


def shortfalls(found: Json) -> list[str]:
    """Return what the demo set out to show and did not."""
    drift, accuracy = found["drift"], found["accuracy"]
    outcomes = {rollout["version"]: rollout["outcome"] for rollout in found["rollouts"]}
    expected = {
        "fleet drift is detected": drift["fleet_detected"],
        "there is no fleet alarm before the shift": not drift["fleet_false_alarm_before_shift"],
        "the stuck camera is named": drift["stuck_device_named"] == drift["stuck_device"],
        "version 2 is better by 5 points": (
            accuracy["v2_after_shift"] - accuracy["v1_after_shift"] >= 0.05
        ),
        "versions 1 and 2 reach the fleet": outcomes.get("1") == outcomes.get("2") == "completed",
        "version 3 is rolled back": outcomes.get("3") == "rolled_back",
        "an altered artifact and a replayed assignment are refused": len(found["refused"]) == 2,
    }
    return [text for text, held in expected.items() if not held]


def main() -> int:
    """Tell the story and write the report; return the exit code."""
    console = Console()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    story = Story((FOLDER / "run").resolve(), console)
    try:
        for chapter in (
            story.begin,
            story.watch,
            story.change_the_world,
            story.retrain,
            story.release_badly,
            story.attack,
        ):
            chapter()
        found = findings.gather(story)
    except (DemoError, CliError) as error:
        console.print(f"[red]the demo stopped:[/] {error}", soft_wrap=True)
        console.print(f"logs are in {FOLDER / 'run'}")
        return 1
    finally:
        story.end()
    report.write(found, FOLDER)
    report.show(found.report, console)
    console.print(f"written: {FOLDER / 'report.json'}, {FOLDER / 'report.html'}")
    missing = shortfalls(found.report)
    for text in missing:
        console.print(f"[red]not shown:[/] {text}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
