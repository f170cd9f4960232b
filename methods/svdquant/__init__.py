"""The method svdquant."""
