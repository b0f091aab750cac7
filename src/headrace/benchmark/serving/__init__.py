"""Open-loop load on a server, and what each request saw of it."""
