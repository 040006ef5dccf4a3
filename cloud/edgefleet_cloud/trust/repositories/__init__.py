"""Keys, ceremonies, and the image and director repositories that they sign."""
