"""The method qdit."""
