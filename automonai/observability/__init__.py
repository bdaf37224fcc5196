"""What others see of a study while it runs: its metrics and its logs."""
