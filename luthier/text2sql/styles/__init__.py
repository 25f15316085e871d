"""One file per way of putting a schema and a question to a model."""
