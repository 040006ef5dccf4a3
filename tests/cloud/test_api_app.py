"""The whole API over HTTP: who may, what is refused and how, and the core's endpoints."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgefleet_cloud.api.app import describe
from edgefleet_cloud.api.limits import SMALL_BODY_BYTES
from edgefleet_cloud.database.models import Job
from edgefleet_cloud.fleet.testing import enrol
from edgefleet_cloud.training.testing import BROKEN

CSV = b"length,width,answer\n" + b"".join(
    b"%d,%d,%s\n" % (i, i * 2, b"yes" if i % 2 else b"no") for i in range(40)
)


def upload(http: httpx.Client, content: bytes = CSV, **form: str) -> httpx.Response:
    files = {"file": ("door.csv", content)}
    return http.post("/v1/datasets", data={"name": "door", "label": "answer"} | form, files=files)


def ship(http: httpx.Client, filename: str = "door.joblib", **options: Any) -> httpx.Response:
    files = {"model": (filename, b"\x80\x05pickle"), "sample": ("door.csv", CSV)}
    wanted = {"name": "door", "to": "all", "label": "answer"} | options
    return http.post("/v1/ship", data={"options": json.dumps(wanted)}, files=files)


def train(http: httpx.Client, **body: Any) -> httpx.Response:
    wanted = {
        "model": "door",
        "trainer": "sklearn",
        "dataset": "door",
        "parameters": {"estimator": "LogisticRegression"},
    }
    return http.post("/v1/runs", json=wanted | body)


# --- the API as a whole -------------------------------------------------------------------------


def test_health_needs_no_token(hub_rig: Any) -> None:
    answer = httpx.get(f"{hub_rig.http.base_url}/v1/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["at"] == hub_rig.services.clock()


def test_every_answer_carries_the_security_headers(hub_rig: Any) -> None:
    for path in ("/v1/health", "/v1/models", "/nowhere"):
        headers = hub_rig.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")


# What anyone may ask: see the docstrings of these routes. Everything else needs a token.
OPEN = {
    "/v1/health", "/v1/ca", "/v1/ca/crl", "/v1/enrol", "/v1/enrol/serial",
    "/v1/renew", "/v1/renew/challenge",
    "/v1/login", "/v1/login/terminal", "/v1/login/terminal/token",
    "/v1/trust/image/metadata/{name}", "/v1/trust/director/root/{name}",
}  # fmt: skip


def test_operations_need_a_token(hub_rig: Any) -> None:
    document = describe().openapi()
    operations = [
        (method, path)
        for path, item in document["paths"].items()
        for method in item
        if path not in OPEN
    ]
    assert len(operations) > 30
    with httpx.Client(base_url=hub_rig.http.base_url) as anyone:
        for number, (method, path) in enumerate(operations):
            url = path.replace("{", "").replace("}", "")
            # Wrong ones are limited by address, and so only shown to some.
            wrong = [{"Authorization": "Bearer wrong"}] if number % 4 == 0 else []
            for headers in ({}, *wrong):
                answer = anyone.request(method, url, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "`edgefleet login`" in answer.json()["error"]


def test_every_error_has_the_one_form(hub_rig: Any) -> None:
    http = hub_rig.http
    for answer, status, text in (
        (http.get("/v1/models/none"), 404, "there is no model 'none'"),
        (http.get("/v1/jobs/7"), 404, "there is no job 7"),
        (http.get("/v1/jobs/x"), 422, "path.job_id: "),
        (http.get("/nowhere"), 404, "Not Found"),
        (http.delete("/v1/jobs"), 405, "Method Not Allowed"),
        (http.post("/v1/runs", content=b"{"), 422, "body"),
        (http.post("/v1/datasets/bundled", json={"name": "mnist"}), 422, "'mnist' is no bundled"),
        (upload(http, name="My Data"), 422, "'My Data' is no model name"),
    ):
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"].startswith(text)


def test_a_fault_of_the_hub_is_told_without_its_inside(
    hub_rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("edgefleet_cloud.registry.service.list_models", fail)
    answer = hub_rig.http.get("/v1/models")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "its log has the details" in answer.json()["error"]


def test_the_description_is_complete() -> None:
    document = describe().openapi()
    assert document["info"]["title"] == "edgefleet hub"
    described = {tag["name"] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation.get("description"), (method, path)
            assert set(operation["tags"]) <= described, (method, path)
            success = min(status for status in operation["responses"] if status.startswith("2"))
            content = operation["responses"][success].get("content", {})
            if "application/json" in content:
                assert content["application/json"]["schema"], (method, path)
            error = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert error["$ref"].endswith("ErrorAnswer"), (method, path)


# --- limits -------------------------------------------------------------------------------------


def test_an_upload_may_have_the_limit_and_not_a_byte_more(hub_rig: Any) -> None:
    limit = hub_rig.services.settings.upload_limit_bytes
    overhead = len(hub_rig.http.build_request(
        "POST", "/v1/datasets", data={"name": "door", "label": "answer"},
        files={"file": ("door.csv", b"")},
    ).read())  # fmt: skip
    filled = CSV + b"1,1,yes\n" * ((limit - overhead - len(CSV)) // 8)
    filled += b"\n" * (limit - overhead - len(filled))
    assert upload(hub_rig.http, filled).status_code == 201
    refused = upload(hub_rig.http, filled + b"\n")
    assert refused.status_code == 413
    assert f"over {limit} bytes" in refused.json()["error"]


def test_bytes_are_counted_where_no_length_is_declared(hub_rig: Any) -> None:
    request = hub_rig.http.build_request(
        "POST", "/v1/datasets", data={"name": "door"}, files={"file": ("d.csv", b"x" * 200_000)}
    )
    body = request.read()
    headers = {"Content-Type": request.headers["Content-Type"]}

    def chunks() -> Any:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    answer = hub_rig.http.post("/v1/datasets", content=chunks(), headers=headers)
    assert answer.status_code == 413
    assert list((hub_rig.services.settings.home / "store").rglob("*")) == []


def test_without_the_token_no_large_body_is_taken(hub_rig: Any) -> None:
    url = f"{hub_rig.http.base_url}/v1/datasets"
    files = {"file": ("d.csv", b"x" * (SMALL_BODY_BYTES + 1))}
    assert httpx.post(url, data={"name": "d"}, files=files).status_code == 413


# --- datasets -----------------------------------------------------------------------------------


def test_a_file_becomes_a_dataset(hub_rig: Any) -> None:
    made = upload(hub_rig.http)
    assert made.status_code == 201
    row = made.json()
    assert (row["name"], row["rows"], row["label"], row["source"]) == (
        "door", 40, "answer", "file:door.csv",
    )  # fmt: skip
    assert [c["name"] for c in row["columns"]] == ["length", "width"]
    assert upload(hub_rig.http).json() == row
    assert hub_rig.http.get("/v1/datasets").json() == [row]
    assert hub_rig.http.get(f"/v1/datasets/{row['digest'][:8]}").json() == row
    assert list((hub_rig.services.settings.home / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "door.csv: the file is empty"),
        (b"a,b\n", "door.csv: there is a header, but no row"),
        (b"a,b\n1,2\n3\n", "door.csv: line 3: expected 2 cells as in the header, found 1"),
        (b"PAR1 but not really", "door.csv: broken Parquet file"),
        (b"a,b\n\xff,1\n", "door.csv: not UTF-8 text"),
        (b"a,b\n1,2\n", "door.csv: no column 'answer' for the label"),
    ],
)
def test_a_malformed_file_is_refused_under_its_own_name(
    hub_rig: Any, content: bytes, complaint: str
) -> None:
    answer = upload(hub_rig.http, content)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(complaint)
    assert hub_rig.http.get("/v1/datasets").json() == []


def test_a_file_name_cannot_leave_the_scratch_folder(hub_rig: Any) -> None:
    files = {"file": ("../../../etc/door.csv", CSV)}
    row = hub_rig.http.post("/v1/datasets", data={"name": "door"}, files=files).json()
    assert row["source"] == "file:door.csv"


# --- training -----------------------------------------------------------------------------------


def test_a_training_holds_rows_out_and_registers_a_version(hub_rig: Any) -> None:
    whole = upload(hub_rig.http).json()
    begun = train(hub_rig.http, seed=5)
    assert begun.status_code == 202
    job = hub_rig.job(begun.json()["id"])
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert job["result"]["version"] == "1"
    run = hub_rig.http.get("/v1/runs/1").json()
    assert (run["state"], run["seed"], run["metrics"]["accuracy"]) == ("succeeded", 5, 0.9)
    detail = hub_rig.http.get("/v1/models/door/versions/1").json()
    assert detail["state"] == "registered"
    assert [v["state"] for v in detail["variants"]] == ["verified", "verified", "refused"]
    assert detail["variants"][2]["reason"] == "loses 5 points"
    assert {d["name"]: d["rows"] for d in detail["datasets"]} == {
        "door-train": 30, "door-holdout": 10, "door": 40,
    }  # fmt: skip
    assert detail["datasets"][0]["parents"] == [whole["digest"]]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"trainer": "torch"}, "'torch' is no trainer; expected one of sklearn, keras-cnn"),
        ({"parameters": {}}, "parameters of sklearn: Object missing required field `estimator`"),
        ({"parameters": {"estimator": "os.system"}}, "estimator 'os.system': expected one of"),
        ({"variants": ["onnx-int2"]}, "unknown variant onnx-int2; expected some of onnx-fp32"),
        ({"model": "Door"}, "'Door' is no model name"),
        ({"holdout_share": 0.01}, "a hold-out share of 0.01 of 40 rows leaves a part empty"),
    ],
)
def test_a_training_that_can_never_work_is_refused_at_once(
    hub_rig: Any, body: dict[str, Any], complaint: str
) -> None:
    upload(hub_rig.http)
    answer = train(hub_rig.http, **body)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(complaint)
    assert hub_rig.http.get("/v1/jobs").json() == []
    assert hub_rig.http.get("/v1/runs").json() == []


def test_rows_to_judge_on_must_have_the_same_columns(hub_rig: Any) -> None:
    upload(hub_rig.http)
    upload(hub_rig.http, b"length,answer\n1,yes\n2,no\n", name="other")
    answer = train(hub_rig.http, holdout="other")
    assert answer.status_code == 422
    assert "different columns or labels" in answer.json()["error"]


def test_a_dataset_without_a_label_trains_nothing(hub_rig: Any) -> None:
    files = {"file": ("door.csv", CSV)}
    hub_rig.http.post("/v1/datasets", data={"name": "door"}, files=files)
    answer = train(hub_rig.http)
    assert answer.status_code == 422
    assert answer.json()["error"] == "dataset door has no label column; add it again with one"


# --- models -------------------------------------------------------------------------------------


def test_a_version_is_approved_released_and_retired(hub_rig: Any) -> None:
    upload(hub_rig.http)
    hub_rig.job(train(hub_rig.http).json()["id"])
    path = "/v1/models/door/versions/1"
    early = hub_rig.http.post(f"{path}/release", json={})
    assert (early.status_code, early.json()["error"]) == (
        409,
        "door 1 is registered; only an approved version is released",
    )
    approved = hub_rig.http.post(f"{path}/approve", json={"reason": "looks right"}).json()
    assert (approved["state"], approved["decision"]["reason"]) == ("approved", "looks right")
    assert hub_rig.http.post(f"{path}/release", json={}).json()["number"] == 1
    assert hub_rig.http.post(f"{path}/release", json={}).json()["number"] == 2
    (model,) = hub_rig.http.get("/v1/models").json()
    assert (model["champion"], model["release"], model["versions"]) == ("1", 2, 1)
    detail = hub_rig.http.get("/v1/models/door").json()
    assert detail["history"][0]["releases"] == [1, 2]
    assert hub_rig.http.post(f"{path}/retire", json={}).json()["state"] == "retired"
    assert hub_rig.http.post(f"{path}/approve", json={}).status_code == 409


# --- ship ---------------------------------------------------------------------------------------


def test_shipping_converts_approves_releases_and_starts_a_rollout(
    hub_rig: Any, tmp_path: Path
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    begun = ship(hub_rig.http)
    assert begun.status_code == 202
    assert "a pickle (.joblib, .pkl) runs code" in begun.json()["warning"]
    assert (begun.json()["version"], begun.json()["devices"]) == ("1", 1)
    job = hub_rig.job(begun.json()["job"])
    assert job["error"] is None
    assert job["result"]["release"] == 1
    rollout = hub_rig.http.get(f"/v1/rollouts/{job['result']['rollout']}").json()
    assert [device["device"] for device in rollout["devices"]] == ["cam-1"]
    version = hub_rig.http.get("/v1/models/door/versions/1").json()
    assert (version["state"], version["decision"]["by"]) == ("approved", "admin")
    assert (version["run"]["trainer"], version["run"]["state"]) == ("import", "succeeded")
    assert version["datasets"][0]["name"] == "door-sample"
    # The job decided nothing: it is all in the name of who shipped.
    for action in ("version.register", "version.approve", "release.create", "rollout.create"):
        [entry] = hub_rig.http.get("/v1/audit", params={"action": action}).json()
        assert (entry["actor"], entry["kind"]) == ("admin", "service"), action


@pytest.mark.parametrize(
    ("filename", "options", "status", "complaint"),
    [
        ("door.joblib", {"to": "everyone"}, 422, ""),
        ("door.joblib", {"to": "device:cam-9"}, 422, ""),
        ("door.joblib", {"to": "label:site=north"}, 409, "no enrolled device matches"),
        ("door.joblib", {"strategy": "yolo"}, 422, "options: strategy: "),
        ("door.joblib", {"name": "Door"}, 422, "'Door' is no model name"),
        ("door.joblib", {"label": "colour"}, 422, "door.csv: no column 'colour'"),
        ("door.joblib", {"variants": ["x"]}, 422, "unknown variant x"),
        ("door.joblib", {"surprise": 1}, 422, "options: surprise: "),
        ("door.docx", {}, 422, "'door.docx' is no model file: expected a name ending in one of"),
        ("door.h5", {}, 422, "door.h5: truncated, damaged, or no .h5 file"),
        ("door.skops", {}, 422, "door.skops: truncated, damaged, or no .skops file"),
    ],
)
def test_what_cannot_be_shipped_is_refused_before_anything_is_kept(
    hub_rig: Any,
    tmp_path: Path,
    filename: str,
    options: dict[str, Any],
    status: int,
    complaint: str,
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    answer = ship(hub_rig.http, filename, **options)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(complaint)
    assert hub_rig.http.get("/v1/jobs").json() == []
    assert hub_rig.http.get("/v1/runs").json() == []


def test_options_that_are_no_json_are_refused(hub_rig: Any) -> None:
    files = {"model": ("m.joblib", io.BytesIO(b"x")), "sample": ("s.csv", CSV)}
    answer = hub_rig.http.post("/v1/ship", data={"options": "{"}, files=files)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("options are no JSON")


def test_a_model_that_cannot_be_converted_fails_its_job_and_its_run(
    hub_rig: Any, tmp_path: Path
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    job = hub_rig.job(ship(hub_rig.http, BROKEN).json()["job"])
    assert (job["state"], job["error"]) == (
        "failed",
        "broken.joblib: no pickle, or a truncated one",
    )
    run = hub_rig.http.get("/v1/runs/1").json()
    assert (run["state"], run["error"]) == ("failed", job["error"])
    assert hub_rig.http.get("/v1/models").json() == []


def test_two_jobs_of_one_model_make_two_versions(hub_rig: Any, tmp_path: Path) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    upload(hub_rig.http)
    begun = [train(hub_rig.http).json(), train(hub_rig.http).json()]
    versions = [hub_rig.job(job["id"])["result"]["version"] for job in begun]
    assert versions == ["1", "2"]
    with hub_rig.services.database.read() as session:
        assert session.get_one(Job, begun[0]["id"]).attempts == 1
