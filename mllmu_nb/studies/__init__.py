"""Studies: questions that no single run answers. Each is a grid of ordinary runs, and an analysis."""
