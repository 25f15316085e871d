"""Pages of HTML that are filled with data."""
