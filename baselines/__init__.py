"""What every method is held against; same contract as ``methods``."""
