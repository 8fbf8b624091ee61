"""Studies: questions that no single run answers. Each is one file here: a grid of ordinary runs, and an analysis."""
