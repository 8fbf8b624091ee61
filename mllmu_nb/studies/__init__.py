"""A question that no single run answers: a grid of ordinary runs, and an analysis."""
