"""One file per layout in which questions, queries and schemas come."""
