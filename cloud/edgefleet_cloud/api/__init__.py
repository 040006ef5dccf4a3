"""The HTTP API: an edge. Routers call services and hold no rules."""
