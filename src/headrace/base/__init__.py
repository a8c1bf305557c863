"""What every room may lean on: errors, URLs, clocks, ids, HTTP, processes, SQLite. A closed list."""
