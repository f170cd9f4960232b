"""Numbers that are kept: approved references and published tables, each with its source."""
