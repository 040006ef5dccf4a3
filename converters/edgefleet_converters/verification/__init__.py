"""Whether a variant is right: trials on its runtime, evidence, golden vectors."""
