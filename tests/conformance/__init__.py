"""The agent's trust client behind the command contract of the TUF conformance suite."""
