"""The commands of `decant`, one a file. Each has `register(app)`, and imports what it needs when it runs."""
