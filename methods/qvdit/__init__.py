"""The method qvdit."""
