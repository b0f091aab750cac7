"""TGI's own routes: bodies, replies and events."""
