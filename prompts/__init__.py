"""Prompt suites as data: ``suites.toml`` lists them with their digests."""
