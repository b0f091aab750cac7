"""What ``headrace chat`` is made of: a model to talk to, here or on a server, and a terminal."""
