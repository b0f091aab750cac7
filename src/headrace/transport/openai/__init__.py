"""OpenAI's routes: bodies, replies and events."""
