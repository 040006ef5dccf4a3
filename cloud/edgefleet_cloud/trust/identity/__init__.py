"""Who is a device of this fleet, and who is the hub: certificates and their renewal."""
