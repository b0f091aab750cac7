"""What the device is, what it can do, and how much memory it has."""
