"""Reading, checking, measuring and preparing images."""
