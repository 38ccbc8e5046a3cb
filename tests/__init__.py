"""What crosses components."""
