"""Who may say what: signed repositories, device identity, people, and the record of decisions.

| package | subject |
|---|---|
| `repositories` | keys, and the image and director repositories that they sign |
| `identity` | the certificate authority: who is a device of this fleet, and who is the hub |
| `people` | accounts, roles, tokens, approvals |
| `audit` | the append-only log of decisions, and where an artifact came from |
"""
