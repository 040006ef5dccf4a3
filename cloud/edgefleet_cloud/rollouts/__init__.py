"""Releases on their way to devices: planned in stages, judged by gates, taken back if need be."""
