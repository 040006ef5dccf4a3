"""The log of decisions, and where an artifact came from.

| module | job |
|---|---|
| `chain` | the form of an entry, the chain of digests, what a checkpoint signs: values only |
| `log` | `record` a decision in the caller's transaction; find entries again |
| `triggers` | the database itself refuses to change or remove an entry |
| `checkpoints` | signs the head of the chain, and gives the signatures out |
| `export`, `verification` | the log as a file, and the check of such a file without a hub |
| `provenance`, `attesting` | the statement of what a variant was made of, signed by the builder |
| `artifact` | from a file that lies somewhere back to root version 1 |
"""
