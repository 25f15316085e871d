"""The one config: its schema, and how files, dicts and command-line settings become it. Never imports torch."""
