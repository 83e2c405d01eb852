"""Builder of a user's own questions about images, as a table."""
