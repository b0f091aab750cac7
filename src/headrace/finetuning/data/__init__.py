"""From files of rows to token ids and labels, everything checked before any weight is loaded."""
