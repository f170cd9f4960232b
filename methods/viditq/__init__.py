"""The method viditq."""
