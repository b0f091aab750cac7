"""What ``headrace serve`` is made of: the two processes joined, and the ready line."""
