"""Where runs happen: the Executor port and its implementations."""
