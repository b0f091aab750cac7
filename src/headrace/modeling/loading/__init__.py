"""From a checkpoint's files to weights in a backend's layout."""
