"""Command line `edgefleet-convert`; each module of this package is a command."""

from edgefleet_converters.cli import check, convert, recipes, search, verify
from edgefleet_converters.cli.app import app

__all__ = ["app", "check", "convert", "recipes", "search", "verify"]
