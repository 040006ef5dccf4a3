"""Background jobs: a row in the database, a function in a process of its own."""
