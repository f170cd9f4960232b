"""The method flatquant."""
