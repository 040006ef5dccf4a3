"""Models, versions, variants and releases."""
