"""Answering rows with what serves, and counting what was seen."""
