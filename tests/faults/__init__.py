"""The agent under faults: cases, the table of them, and the random soak."""
