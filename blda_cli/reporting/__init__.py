"""The report: one set of numbers, shown on the terminal, as a page and as data."""
