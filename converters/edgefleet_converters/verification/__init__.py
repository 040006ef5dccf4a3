"""Verification: a variant runs on its real runtime, is compared with the original, and is judged.

`trial` runs it in a child process; `truth` says what is right and how well scores meet it;
`evidence` how sure that is; `judging` accepts or refuses; `goldens` keeps what it answered.
"""
