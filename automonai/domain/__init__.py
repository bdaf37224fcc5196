"""The records and the arithmetic of a study: pure, no files, no clock, no randomness that is not passed in."""
