"""Each kernel against its floor on the device at hand."""
