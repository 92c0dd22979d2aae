"""What models learn to do."""
