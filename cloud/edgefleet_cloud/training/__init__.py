"""Trainers and their runs."""
