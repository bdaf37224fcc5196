"""Programs of this repository that no installation has."""
