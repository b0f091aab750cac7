"""The ground floor: what the transport process and the engine process say to each other."""
