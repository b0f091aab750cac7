"""Choice among ways to compute a linear, by measurement, kept in a file."""
