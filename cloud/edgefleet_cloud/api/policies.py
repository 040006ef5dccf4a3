"""What several requests say to devices in the same words: orders and budgets."""

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_converters.conversion import DeviceBudget

ORDER = (
    "Policy for the devices: window_rows, confirm_rows, confirm_deadline_s,"
    " samples {purpose, per_window, strategy, per_day}, max_bytes (that an attempt may download),"
    " urgent (do not wait for a maintenance window)."
)


class Budget(BaseModel):
    """What a model may cost on a device, by the device's own measure; 0 for no budget."""

    model_config = ConfigDict(extra="forbid")
    max_latency_us: int = Field(default=0, ge=0, description="For one row.")
    max_memory_bytes: int = Field(default=0, ge=0, description="Of resident memory added.")

    def value(self) -> DeviceBudget:
        """Return the budget as the conversion takes it."""
        return DeviceBudget(self.max_latency_us, self.max_memory_bytes)
