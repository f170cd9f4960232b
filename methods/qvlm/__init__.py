"""The method qvlm."""
