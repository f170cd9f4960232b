"""The method ptq4dit."""
