"""`edgefleet-convert verify`: does the runtime that is installed here compute a bundle rightly?"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from edgefleet_converters import bundles, child
from edgefleet_converters.cli.app import FAILED, JsonFlag, app, fail, installed
from edgefleet_converters.errors import ConversionError
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import trial
from edgefleet_protocol import profiles
from edgefleet_protocol.profiles import DeviceProfile


@app.command("verify")
def verify(
    bundle_dir: Annotated[Path, typer.Argument(help="Folder with manifest.json and its blobs.")],
    as_json: JsonFlag = False,
) -> None:
    """Run a bundle's golden vectors on the runtime that is installed here."""
    try:
        report = report_on(bundle_dir)
    except ConversionError as error:
        fail(error, as_json)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        outcome = "reproduces" if report["verified"] else "does NOT reproduce"
        print(
            f"{report['model']} {report['version']} {report['variant']}: {report['runtime']}"
            f" {report['runtime_version']} {outcome} its golden vectors"
        )
        for fault in report["faults"]:
            print(f"  {fault}")
    if not report["verified"]:
        raise typer.Exit(FAILED)


def report_on(folder: Path) -> dict[str, Any]:
    """Run the golden vectors of the bundle in a folder.

    Raises:
        BadInputError: if it holds no whole bundle.
    """
    bundle = bundles.load(folder)
    described = bundle.manifest
    runtime = described.needs.runtime
    runtimes = installed(runtime)
    profile = DeviceProfile("", runtimes, sys.maxsize)
    needs = msgspec.structs.replace(described.needs, boards=[])  # no board is asked about here
    faults = profiles.misfits(needs, profile)
    if runtimes:
        kind: Any = "onnx" if runtime == "onnxruntime" else "tflite"
        model = Model(kind, bundle.unpack("model"), described.signature)
        try:
            faults += child.run(
                f"running {folder}",
                trial.golden_faults,
                runtime,
                model,
                bundle.unpack("golden"),
                returns=list[str],
            )
        except ConversionError as error:
            faults.append(str(error))
    return {
        "model": described.model,
        "version": described.model_version,
        "variant": described.variant,
        "runtime": next(iter(runtimes), runtime),
        "runtime_version": next(iter(runtimes.values()), None),
        "verified": not faults,
        "faults": faults,
    }
