"""Datasets over HTTP."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Hub, allow
from edgefleet_cloud.api.uploads import read_upload
from edgefleet_cloud.database.models import Dataset
from edgefleet_cloud.datasets import bundled, content, service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["datasets"])


class ColumnAnswer(BaseModel):
    """One feature."""

    name: str
    kind: Literal["numeric", "categorical"]


class DatasetAnswer(BaseModel):
    """Rows that models are trained or judged on."""

    model_config = ConfigDict(from_attributes=True)
    digest: str = Field(description="SHA-256 of the canonical Parquet file; names the dataset.")
    name: str
    rows: int
    columns: list[ColumnAnswer] = Field(description="The features, in order, without the label.")
    label: str | None = Field(description="Name of the label column.")
    source: str
    parents: list[str] = Field(description="Digests of the datasets that this was made from.")
    created_at: float = Field(description="Unix seconds.")


class BundledRequest(BaseModel):
    """A data set that scikit-learn brings along."""

    name: str = Field(description=f"One of {', '.join(bundled.BUNDLED)}.")


@router.post(
    "/datasets", status_code=201, dependencies=allow(Permission.MAKE), response_model=DatasetAnswer
)
def upload_dataset(
    hub: Hub,
    file: UploadFile,
    name: Annotated[str, Form(description="For people; lower-case letters, digits, - and _.")],
    label: Annotated[str | None, Form(description="Column with the right answers.")] = None,
) -> Dataset:
    """Add a CSV or Parquet file. The same content added again gives the dataset that is there."""
    table = read_upload(file, hub.settings.home / "uploads")
    prepared = content.prepare(hub.store, table, label)
    with hub.database.write() as session:
        return service.add(
            session, prepared, name=name, source=f"file:{table.source}", now=hub.clock()
        )


@router.post(
    "/datasets/bundled",
    status_code=201,
    dependencies=allow(Permission.MAKE),
    response_model=DatasetAnswer,
)
def add_bundled_dataset(hub: Hub, request: BundledRequest) -> Dataset:
    """Add one of the data sets that scikit-learn brings along; its label column is `target`."""
    prepared = content.prepare(hub.store, bundled.load(request.name), bundled.LABEL)
    with hub.database.write() as session:
        return service.add(
            session,
            prepared,
            name=request.name,
            source=f"bundled:{request.name}",
            now=hub.clock(),
        )


@router.get("/datasets", dependencies=allow(Permission.READ), response_model=list[DatasetAnswer])
def list_datasets(hub: Hub, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[Dataset]:
    """List datasets, newest first."""
    with hub.database.read() as session:
        return service.list_datasets(session, limit=limit)


@router.get(
    "/datasets/{reference}", dependencies=allow(Permission.READ), response_model=DatasetAnswer
)
def show_dataset(hub: Hub, reference: str) -> Dataset:
    """Show one dataset by digest, by the beginning of its digest, or by name."""
    with hub.database.read() as session:
        return service.find(session, reference)
