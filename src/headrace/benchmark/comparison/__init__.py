"""Two or more records side by side: joined rows, noise, tables, plots, one page."""
