"""Routes: one module for each kind of model that goes in."""
