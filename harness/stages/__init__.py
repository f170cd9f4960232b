"""The stages of the line: each reads files and writes files."""
