"""One thin file a command; the only place that knows every setting."""
