"""People and programs that use the hub: accounts, roles, tokens, approvals."""
