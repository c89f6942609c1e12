"""What the notebooks show of each experiment."""
