"""The hub's tables. All times are Unix seconds (UTC), all digests SHA-256 in hexadecimal.

Files (datasets, models, manifests, transfer blobs) are in the content-addressed store
(`edgefleet_cloud.storage`); a table holds their digests. One module a subject; every table is
named here, so that the migrations see all of them.
"""

from edgefleet_cloud.database.models.audit import AuditCheckpoint, AuditEntry, Provenance
from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.database.models.fleet import (
    Challenge,
    ChallengerOrder,
    Claim,
    Desired,
    Device,
    DeviceState,
    DirectorRecord,
)
from edgefleet_cloud.database.models.identity import (
    Certificate,
    DeviceIdentity,
    ExpectedDevice,
    StatementRecord,
)
from edgefleet_cloud.database.models.jobs import Job, JobState
from edgefleet_cloud.database.models.making import (
    Dataset,
    Model,
    Release,
    Run,
    Variant,
    Version,
    VersionState,
)
from edgefleet_cloud.database.models.monitoring import Incident, Retraining, Trigger, Verdict, Watch
from edgefleet_cloud.database.models.people import (
    Account,
    AccountKind,
    ApiToken,
    Approval,
    ApprovalState,
    Lockout,
    ProviderSignIn,
    RoleGrant,
    TerminalSignIn,
    Voice,
    WebSession,
)
from edgefleet_cloud.database.models.reports import (
    RefusalRecord,
    ReportRecord,
    ResultRecord,
    SampleRecord,
    WindowRecord,
)
from edgefleet_cloud.database.models.repositories import OwnedModel
from edgefleet_cloud.database.models.rollouts import Rollout, RolloutDevice, RolloutState

__all__ = [
    "Account",
    "AccountKind",
    "ApiToken",
    "Approval",
    "ApprovalState",
    "AuditCheckpoint",
    "AuditEntry",
    "Base",
    "Big",
    "Certificate",
    "Challenge",
    "ChallengerOrder",
    "Claim",
    "Dataset",
    "Desired",
    "Device",
    "DeviceIdentity",
    "DeviceState",
    "DirectorRecord",
    "ExpectedDevice",
    "Incident",
    "Job",
    "JobState",
    "Lockout",
    "Model",
    "OwnedModel",
    "Provenance",
    "ProviderSignIn",
    "RefusalRecord",
    "Release",
    "ReportRecord",
    "ResultRecord",
    "Retraining",
    "RoleGrant",
    "Rollout",
    "RolloutDevice",
    "RolloutState",
    "Run",
    "SampleRecord",
    "StatementRecord",
    "TerminalSignIn",
    "Trigger",
    "Variant",
    "Verdict",
    "Version",
    "VersionState",
    "Voice",
    "Watch",
    "WebSession",
    "WindowRecord",
]
