"""The update of models: the table, its journals, and the work that each step needs."""
