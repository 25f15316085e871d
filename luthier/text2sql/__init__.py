"""Text to SQL: questions and schemas in many layouts made into training rows, and queries predicted for them."""
