"""Where studies live: the Store port and its implementations."""
