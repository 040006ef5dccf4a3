"""What was decided, by whom and why; and where an artifact came from."""
