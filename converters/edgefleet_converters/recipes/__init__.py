"""Recipes: named lists of steps, written in YAML, and the workshop that carries them out."""
