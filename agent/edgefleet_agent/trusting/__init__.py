"""Who this device is, and which signed metadata it believes."""
