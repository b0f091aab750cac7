"""A step's inputs on their way from the host's staging buffer to their places on a GPU."""
