"""The page for people: sign in, approve, tokens, accounts. No scripts, nothing from outside."""
