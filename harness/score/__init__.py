"""Score: what is judged of a clip, each metric by one scorer."""
