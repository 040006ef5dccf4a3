"""Types that several rooms of the hub share. Imports nothing, so that job processes stay light."""

from typing import Any

# A JSON object.
Json = dict[str, Any]
