"""Keys and signed metadata: the hub's certificate authority, image and director repositories."""
