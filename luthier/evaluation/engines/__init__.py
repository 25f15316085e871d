"""What answers prompts: each file is an engine, with its `Options` and `build(options, opening) -> Engine`."""
