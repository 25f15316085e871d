"""Measuring predicted queries: exact set match and execution as Spider defines them, execution and efficiency as BIRD does."""
